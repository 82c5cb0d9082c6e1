/// The steps of a CPU plan: plain argument structs and the functions that run them. Every worker calls every step; a
/// step shares its work out through the context's ranges, and no result depends on who computed it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cpu/kernel_table.h"
#include "cpu/kv_storage.h"
#include "cpu/work_range.h"
#include "engine/batch.h"
#include "plan/state_runs.h"
#include "program/attention_options.h"
#include "quant/layout.h"

namespace sterna::cpu {

/// Buffers of one worker.
struct WorkerScratch {
  Buffer floats;
  Buffer unpacked;  // panels of a matrix, decoded: kNative ones, and wide tiles
  Buffer tiles;     // the rows of a fused matmul, prepared
  std::vector<const std::uint8_t*> key_tiles;
  std::vector<const std::uint8_t*> value_tiles;
  std::vector<float> key_biases;  // by head and offset of a key from a row
};

/// What a worker sees of a run.
struct StepContext {
  const Batch* batch = nullptr;
  const KernelTable* kernels = nullptr;
  const KvStorage* kv = nullptr;
  const StateRuns* states = nullptr;
  WorkerScratch* scratch = nullptr;
  WorkRange* ranges = nullptr;  // of this step, one per worker
  int worker = 0;
  int num_workers = 1;

  std::int64_t rows(bool outputs) const { return outputs ? batch->num_outputs() : batch->num_tokens(); }

  /// Calls fn(begin, end) for pieces of [0, count), at most `piece` long, until all workers together have done all.
  template <class Fn>
  void share(std::int64_t count, std::int64_t piece, Fn fn) const {
    share_work(ranges, worker, num_workers, count, piece, fn);
  }
  /// Pieces for row-wise work: about four a worker.
  std::int64_t row_piece(std::int64_t count) const { return count / (4 * num_workers) + 1; }
};

using StepFunction = void (*)(const void* arguments, const StepContext& context);

struct Step {
  StepFunction run = nullptr;
  const void* arguments = nullptr;
  /// Asks for what the worker will read first, while it waits for the step before; may be null.
  StepFunction warm = nullptr;
};

/// How many token rows lie interleaved in a tile, and whether for the gemm kernels.
struct TileForm {
  int rows;
  bool gemm;
};
TileForm tile_form(const KernelTable& kernels, std::int64_t rows);

/// Token rows prepared for matmuls: tiles of TileForm::rows rows, the last one shorter.
struct TileSpace {
  std::uint8_t* base = nullptr;
  std::int64_t k = 0;
  std::int64_t block = 0;        // k per activation scale: 32, 256 or k; 0: nothing is quantised
  std::int64_t scale_every = 0;  // k per scale as the kernels read them: 32 or 256 (block = k repeats the one scale)

  std::int64_t tile_bytes(int tile_rows) const;
  /// Enough for any number of rows up to `rows`, in either form.
  std::int64_t bytes(const KernelTable& kernels, std::int64_t rows) const;
  ActivationTile tile(std::int64_t index, std::int64_t rows, const TileForm& form) const;
};

/// Row t of y is row tokens[t] of w, or row positions[t], or row 0: every text is of one type.
struct EmbedStep {
  const PackedMatrix* w;
  EmbeddedIds ids;
  bool is_first;  // of tokens: given embeddings replace its rows; other tables have row 0 for them
  Rows y;
};
void run_embed(const void* arguments, const StepContext& context);

/// y = rms_norm of each of `heads` parts of n floats of a row (+ residual).
struct NormStep {
  Rows x, residual, y;  // residual's data null: none
  const float* weight;  // null: none
  std::int64_t heads, n;
  float eps;
};
void run_norm(const void* arguments, const StepContext& context);

/// y = layer_norm of each of `heads` parts of n floats of a row.
struct LayerNormStep {
  Rows x, y;
  const float* weight;  // null: none; of head h at h * head_step, as the bias
  const float* bias;    // null: none
  std::int64_t heads, n, head_step;
  float eps;
};
void run_layer_norm(const void* arguments, const StepContext& context);

enum class BinaryKind : std::uint8_t { kAdd, kMul };
struct BinaryStep {
  BinaryKind kind;
  Rows a, b, y;
  const float* weight;  // instead of b: repeated along the row
  std::int64_t period;  // floats of weight or of a row of b: n, or fewer
  std::int64_t n;
};
void run_binary(const void* arguments, const StepContext& context);

/// y += scale * factor * b a x, in place, for the rows of sequences that use the adapter (arXiv:2106.09685).
struct LoraStep {
  Rows x, y;
  const float* a;  // [rank][k]
  const float* b;  // [rank][n], transposed
  std::int64_t k, n, rank;
  std::int32_t adapter;
  float factor;
};
void run_lora(const void* arguments, const StepContext& context);

/// y = x * operand, or x within -operand .. operand.
struct ScaleStep {
  Rows x, y;
  std::int64_t n;
  float operand;
};
void run_scale(const void* arguments, const StepContext& context);
void run_clamp(const void* arguments, const StepContext& context);

struct ActivationStep {
  Rows x, y;
  std::int64_t n;
  ActivationKind kind;
};
void run_activation(const void* arguments, const StepContext& context);

struct GluStep {
  Rows gate, up, y;
  std::int64_t n;
  ActivationKind kind;
};
void run_glu(const void* arguments, const StepContext& context);

/// Copies n floats of each row, for concat and split; or of each of `heads` parts of a row, which lie apart.
struct CopyStep {
  Rows x, y;
  std::int64_t n;
  std::int64_t heads = 1, x_apart = 0, y_apart = 0;
};
void run_copy(const void* arguments, const StepContext& context);
/// Row i of y is row output_rows[i] of x.
void run_take_rows(const void* arguments, const StepContext& context);

/// y = n floats of each received row of row_floats, from `first` on.
struct ReceiveStep {
  Rows y;
  std::int64_t row_floats, first, n;
};
void run_receive(const void* arguments, const StepContext& context);

/// Row i of y stands for the sequence whose last row is output_rows[i] of x.
struct PoolStep {
  Rows x, y;
  std::int64_t n;
  PoolKind kind;
};
void run_pool(const void* arguments, const StepContext& context);

/// Cosines and sines of every row's position, [T][pairs] each.
struct RopeTableStep {
  std::vector<float> frequencies;
  std::vector<float> long_frequencies;  // of long sequences; empty: the same
  float factor;
  Rows cosines, sines;
};
void run_rope_table(const void* arguments, const StepContext& context);

/// How heads are normalised and rotated; no norm and no rotation where the pointers are null.
struct HeadTransform {
  const float* norm = nullptr;
  float eps = 0.0f;
  Rows cosines, sines;
  int rotary_dim = 0;
  bool interleaved = false;

  bool is_identity() const { return norm == nullptr && cosines.data == nullptr; }
};

struct RopeStep {
  Rows x, y;
  int heads, head_dim;
  HeadTransform transform;
};
void run_rope(const void* arguments, const StepContext& context);

/// Writes K and V of every row to the cache, and the transformed queries to q_out.
struct StoreKvStep {
  Rows q, k, v, q_out;
  int query_heads;
  std::int64_t layer;
  HeadTransform query_transform, key_transform;
};
void run_store_kv(const void* arguments, const StepContext& context);

/// A relative bias by distance: y[head][farthest + d] is that of a key d positions behind the row, d from -farthest to
/// farthest; further keys have the bias of the farthest.
struct RelativeBiasStep {
  const PackedMatrix* w;  // [buckets, heads]
  std::int64_t farthest;
  bool causal;
  float* y;
};
void run_relative_bias(const void* arguments, const StepContext& context);

struct AttendStep {
  Rows q, y;
  int query_heads;
  std::int64_t layer;
  float scale, softcap;
  std::int64_t window;        // keys seen, the own one included; 0: all
  std::int64_t chunk;         // keys are seen from the last multiple of it on; 0: all
  bool causal;                // otherwise keys at most window / 2 positions away, before and after
  bool cross;                 // all keys of the sequence that was encoded for this one
  const float* sinks;         // [query head]; null: none
  std::vector<float> slopes;  // [query head]; empty: none
  AttentionTemperature temperature;
  float* relative_bias = nullptr;  // of RelativeBiasStep; null: none
  std::int64_t farthest = 0;       // of it
};
void run_attend(const void* arguments, const StepContext& context);

/// y = w x (+ bias) (+ residual), or activation(w x) * (up x) in place of w x.
struct MatmulPart {
  const PackedMatrix* w;
  const PackedMatrix* up;  // null: none
  const float* bias;
  const float* up_bias;
  ActivationKind glu;
  Rows residual;  // data null: none
  Rows y;
};
/// Rows of x become tiles, which all parts read.
struct LinearStep {
  Rows x;
  const float* norm;  // of the rows; null: none
  float eps;
  TileSpace tiles;
  std::vector<MatmulPart> parts;
};
/// Norms (where asked for) and quantises rows into tiles.
void run_prepare(const void* arguments, const StepContext& context);
/// Panels are shared out; each meets all tiles while it is in the cache.
void run_matmul(const void* arguments, const StepContext& context);
/// Both in one step, for so few rows that every worker may as well prepare them for itself.
void run_linear(const void* arguments, const StepContext& context);
void warm_linear(const void* arguments, const StepContext& context);
constexpr std::int64_t kMaxFusedRows = 4;

/// Head h of y = w[h] times head h of x; the rows of each head become tiles of their own, `head_bytes` apart.
struct HeadLinearStep {
  Rows x, y;
  std::span<const PackedMatrix> w;
  TileSpace tiles;
  std::int64_t head_bytes;
};
void run_head_prepare(const void* arguments, const StepContext& context);
void run_head_linear(const void* arguments, const StepContext& context);

}  // namespace sterna::cpu
