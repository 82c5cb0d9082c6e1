/// What the core sees of the device library, which alone knows the CUDA runtime: plain functions and plain arguments.
/// The library is opened at run time, so that a build with CUDA also runs where there is no driver.
#pragma once

#include <cstdint>

namespace sterna::cuda {

/// Of DeviceTable and all arguments: core and library must agree.
constexpr int kTableVersion = 2;

/// 0, or an error for DeviceTable::error_text.
using Status = int;
/// The library has no kernel for what was asked.
constexpr Status kNoKernel = -1;

struct DeviceInfo {
  char name[128];
  int major, minor;  // compute capability
  int multiprocessors;
  std::uint64_t total_bytes;
  std::uint64_t block_bytes;  // of shared memory that a block can have
};

/// The batch of a run on the device, at addresses that never change. T, L and S count rows, outputs and sequences.
struct DeviceBatch {
  const std::int32_t* counts;         // T, L, S
  const std::int32_t* tokens;         // [T]
  const std::int32_t* positions;      // [T]
  const std::int32_t* sequences;      // [T]
  const std::int32_t* last_rows;      // [T]: the last row of the row's sequence
  const std::int32_t* output_rows;    // [L]
  const std::int32_t* largest;        // [L]: how many of its largest logits are wanted
  const std::int32_t* first_rows;     // [S]: of the sequence's rows
  const std::int32_t* encoded_sizes;  // [S]: tokens that were encoded for it
  const std::int32_t* is_long;        // [S]: whether it turns with the long factors of longrope
  const std::int32_t* adapters;       // [S]; -1: none
  const float* adapter_scales;        // [S]
  const std::int32_t* given_rows;     // [T]: the row of `given` that stands for the token's embedding; -1: none
  const float* given;                 // [.., hidden_size]
  const std::int32_t* pages;          // of all page tables, one behind the other
  const std::int32_t* tables;         // [S][pools]: where each begins in `pages`
  std::int32_t num_pools;
  const std::int32_t* row_segments;    // [T]: the first of the state segments of the row's sequence
  const std::int32_t* segment_starts;  // [S + 1]: the sequence's state segments
  const struct StateSegment* segments;
  const float* received;  // [T][..]: what the plan before this one in a chain computed
};

/// Rows [first_row, last_row) of a sequence that begin with one kept state and end with the next.
struct StateSegment {
  const float* source;  // the half of a page that holds the state before them; null: it is zero
  float* target;        // another one, for the state after them
  std::int32_t first_row;
  std::int32_t last_row;
};

/// A run for at most so many rows: grids are made for these, and kernels look up how many there are.
struct Launch {
  void* stream;
  const DeviceBatch* batch;
  std::int32_t num_tokens;
  std::int32_t num_outputs;
  std::int32_t num_sequences;
};

using Launcher = Status (*)(const void* arguments, const Launch& launch);

/// The kernels by the argument structs of arguments.h.
enum class Kernel : std::uint8_t {
  kEmbed,
  kNorm,
  kLayerNorm,
  kBinary,
  kLora,
  kScale,
  kClamp,
  kActivation,
  kGlu,
  kCopy,
  kTakeRows,
  kReceive,
  kPool,
  kRopeTable,
  kRope,
  kStoreKv,
  kRelativeBias,
  kAttend,
  kPrepare,
  kMatmul,
  kRoute,
  kSortPairs,
  kCombine,
  kShortConv,
  kSsmScan,
  kDeltaRule,
  kLargest,
  kRepack,
  kCount
};
constexpr int kNumKernels = static_cast<int>(Kernel::kCount);
/// In the order of Kernel.
constexpr const char* kKernelNames[kNumKernels] = {
    "embed",      "norm",     "layer_norm",    "binary",    "lora",       "scale",   "clamp",
    "activation", "glu",      "copy",          "take_rows", "receive",    "pool",    "rope_table",
    "rope",       "store_kv", "relative_bias", "attend",    "prepare",    "matmul",  "route",
    "sort_pairs", "combine",  "short_conv",    "ssm_scan",  "delta_rule", "largest", "repack",
};
static_assert(kKernelNames[kNumKernels - 1] != nullptr);

struct DeviceTable {
  int version;
  /// What there is code for: see has_code.
  const char* compiled;
  const char* (*error_text)(Status status);

  // These make no context on a device, and leave the calling thread's.
  Status (*count_devices)(int* count);
  Status (*describe_device)(int device, DeviceInfo* info);

  /// Of the calling thread, for all that follows. Makes a context on the device, as everything below may.
  Status (*use_device)(int device);
  /// 0 where the device in use can run the library's code.
  Status (*check_code)();
  /// Of the device in use.
  Status (*free_bytes)(std::uint64_t* bytes);
  Status (*create_stream)(void** stream);
  Status (*destroy_stream)(void* stream);
  Status (*synchronize)(void* stream);

  Status (*allocate)(std::uint64_t bytes, void** memory);
  Status (*release)(void* memory);
  /// Memory of the host that copies need not wait for.
  Status (*allocate_host)(std::uint64_t bytes, void** memory);
  Status (*release_host)(void* memory);
  /// In any direction, in the stream's order.
  Status (*copy)(void* to, const void* from, std::uint64_t bytes, void* stream);
  Status (*fill_zero)(void* memory, std::uint64_t bytes, void* stream);

  /// What is put into the stream between these two runs when the graph is launched.
  Status (*begin_graph)(void* stream);
  Status (*end_graph)(void* stream, void** graph);
  Status (*launch_graph)(void* graph, void* stream);
  Status (*destroy_graph)(void* graph);

  Launcher launchers[kNumKernels];
};

/// The library's one symbol.
constexpr const char* kTableSymbol = "sterna_cuda_table";
using TableFunction = const DeviceTable* (*)();

}  // namespace sterna::cuda
