/// The CUDA backend's Plan: compiles a Program, and puts its steps into a device's stream; few rows go as a graph.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cuda/batch_upload.h"
#include "cuda/device.h"
#include "cuda/kv_storage.h"
#include "cuda/largest_logits.h"
#include "cuda/lowering.h"
#include "cuda/weights.h"
#include "plan/kept_functions.h"
#include "plan/program_plan.h"
#include "plan/state_runs.h"
#include "plan/tensor_source.h"

namespace sterna::cuda {

struct CudaPlanOptions {
  int device = 0;   // for plan_memory, below 0: none in particular
  int threads = 0;  // that pack weights; 0: one per CPU that this process may use
  KvType kv_type = KvType::kF16;
  std::int32_t max_tokens = 512;
  std::int32_t max_outputs = 64;
  bool keep_values = false;  // every result of a node can be looked at after a run
};

/// Of all steps ("all"), or of those of a kernel.
struct KernelTime {
  std::string name;
  int steps;
  double seconds;
};

/// What a CudaPlan of this program will hold on its device, which need not be there. Throws UnsupportedModelError, for
/// what that device lacks where it is there.
PlanMemory plan_memory(const Program& program, const CudaPlanOptions& options);

/// The steps of some functions, with the memory that they compute in, one function at a time.
struct CompiledFunctions {
  struct KeptValue {
    std::string name;
    std::string source;  // the line of the model file
    Rows rows;           // in device memory
    std::int64_t size;
  };
  struct Steps {
    std::string function;
    std::vector<Step> steps;
    std::deque<std::shared_ptr<void>> arguments;
    std::span<std::uint8_t> zeroed;  // before each run
    std::vector<KeptValue> kept;
    Rows output;  // one row per output of the batch, or where it is sent per token, without gaps
    std::int64_t output_size = 0;
  };

  std::deque<Steps> functions;
  DeviceMemory arena;

  const Steps* find(std::string_view name) const;
};

class CudaPlan final : public ProgramPlan {
 public:
  /// Makes one, and deletes it, in threads of their own: the caller's goes on with the device that it has.
  static std::shared_ptr<CudaPlan> make(const Program& program, const TensorSource& source,
                                        const CudaPlanOptions& options);
  /// Compiles the functions. The program is used as it is: fuse it first for speed. Throws DeviceError,
  /// UnsupportedModelError, MemoryBudgetError, and what the source throws.
  CudaPlan(const Program& program, const TensorSource& source, const CudaPlanOptions& options);
  ~CudaPlan() override;

  bool run(const Batch& batch, const Interrupt* interrupt) override;
  std::span<const float> logits() const override { return outputs_of("logits"); }
  std::span<const float> logits_row(std::size_t output) override;
  std::int32_t most_largest() const override { return largest_ ? kMostLargest : 0; }
  std::span<const TokenLogit> largest_logits(std::size_t output) const override;
  std::span<const float> encodings() const override { return outputs_of("encode"); }
  std::span<const float> kept_row(std::string_view name, std::int32_t row, std::size_t output) const override;
  std::string first_non_finite(const Batch& batch, std::int32_t row) override;
  void reserve_pages(std::size_t pool, std::int32_t num_pages) override { kv_.reserve(pool, num_pages); }
  std::int32_t num_pages(std::size_t pool) const override { return kv_.num_pages(pool); }
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) override { kv_.copy_page(pool, from, to); }
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const override {
    kv_.read_page(pool, page, bytes);
  }
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) override {
    kv_.write_page(pool, page, bytes);
  }
  PlanMemory memory() const override;

  /// "cuda:0 (NVIDIA H200)"
  std::string device() const;
  std::map<std::string, int> layouts() const override { return weights_.layouts(); }
  std::vector<std::string> value_names() const override;
  std::vector<float> value(const std::string& name) const override;

  /// What the last run's steps take once more, and what they take less without those of one kernel, by kernel: each
  /// kernel's own part, caches and overlap with its neighbours included. Not of route and sort_pairs, which the others
  /// cannot do without. Medians of so many runs. The plan's results and cache are of no use afterwards.
  std::vector<KernelTime> time_kernels(int repetitions);

 private:
  struct Graph {
    void* handle;             // null: made when its key comes again
    std::int64_t generation;  // of the batch's addresses
  };
  /// Of a function: rows and outputs that it was captured for.
  using GraphKey = std::tuple<std::string, std::int32_t, std::int32_t>;

  CompiledFunctions compile(std::span<const std::string> names, const BufferPlan::Limits& limits);
  /// Puts the steps into the stream. False when `interrupt` was seen due.
  bool launch(std::span<const Step> steps, const Launch& launch, const Interrupt* interrupt) const;
  /// The steps as a graph; null where the device makes none.
  void* make_graph(std::span<const Step> steps, const Launch& sizes);
  /// The same by a graph, which is made when its sizes come for the second time: the first time kernels are loaded, and
  /// many sizes come but once. False where there is none.
  bool launch_graph(const CompiledFunctions::Steps& steps, const Batch& batch);
  bool run(CompiledFunctions& compiled, const Batch& batch, const Interrupt* interrupt);
  double seconds_without(std::optional<Kernel> left_out, const Launch& sizes, int repetitions);
  /// Puts into the stream what brings the batch's results here.
  void fetch_results(const CompiledFunctions::Steps& steps, const Batch& batch, const Launch& launch);
  void fetch_outputs(const Rows& outputs, std::int64_t size, std::size_t first, std::size_t count);
  std::span<const float> outputs_of(std::string_view function) const;
  std::vector<float> read_rows(const Rows& rows, std::int64_t first, std::int64_t count, std::int64_t size) const;
  void drop_graph(Graph& graph) const noexcept;

  const std::shared_ptr<const Device> device_;
  Weights weights_;
  KvStorage kv_;
  Constants constants_;
  BatchUpload upload_;
  StateRuns states_;
  CompiledFunctions compiled_;
  KeptFunctions<CompiledFunctions> keeping_;
  std::map<GraphKey, Graph> graphs_;  // of compiled_
  bool has_graphs_ = true;
  DeviceMemory results_;                  // in host memory
  std::vector<bool> is_fetched_;          // whether an output's row is there
  std::vector<std::int32_t> wanted_;      // the batch's `largest`
  std::optional<LargestLogits> largest_;  // where there are logits
  mutable std::map<std::pair<std::string, std::int64_t>, std::vector<float>> kept_rows_;  // of the last run
  const CompiledFunctions::Steps* last_ = nullptr;
  std::int32_t num_outputs_ = 0;
  std::int32_t num_tokens_ = 0;
};

}  // namespace sterna::cuda
