/// The CPU backend's Plan: compiles a Program, and runs its steps on a pool of threads.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/compiled_steps.h"
#include "cpu/kv_storage.h"
#include "cpu/steps.h"
#include "cpu/thread_pool.h"
#include "cpu/weights.h"
#include "plan/kept_functions.h"
#include "plan/program_plan.h"
#include "plan/state_runs.h"
#include "plan/tensor_source.h"
#include "program/program.h"

namespace sterna::cpu {

struct CpuPlanOptions {
  int threads = 0;  // 0: one per CPU that this process may use
  std::string isa;  // empty: chosen_level()
  KvType kv_type = KvType::kF16;
  std::int32_t max_tokens = 512;
  std::int32_t max_outputs = 64;
  std::shared_ptr<ThreadPool> pool;  // of another plan, which never runs at the same time; null: `threads` of its own
  bool keep_values = false;          // every result of a node can be looked at after a run
};

/// What a CpuPlan of this program will hold, found out without allocating its matrices, buffers and pages.
PlanMemory plan_memory(const Program& program, const CpuPlanOptions& options);

class CpuPlan final : public ProgramPlan {
 public:
  /// Compiles the functions. The program is used as it is: fuse it first for speed. Throws
  /// UnsupportedModelError, DeviceError, MemoryBudgetError, and what the source throws.
  CpuPlan(const Program& program, const TensorSource& source, const CpuPlanOptions& options);

  bool run(const Batch& batch, const Interrupt* interrupt) override;
  std::span<const float> logits() const override { return outputs_of("logits"); }
  std::span<const float> encodings() const override { return outputs_of("encode"); }
  std::span<const float> kept_row(std::string_view name, std::int32_t row, std::size_t output) const override;
  std::string first_non_finite(const Batch& batch, std::int32_t row) override;
  void reserve_pages(std::size_t pool, std::int32_t num_pages) override { kv_.reserve(pool, num_pages); }
  std::int32_t num_pages(std::size_t pool) const override { return kv_.num_pages(pool); }
  void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) override;
  void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const override;
  void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) override;
  PlanMemory memory() const override;

  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_->size(); }
  /// For a plan that takes turns with this one: two pools would spin in each other's way.
  std::shared_ptr<ThreadPool> pool() const { return pool_; }
  std::map<std::string, int> layouts() const override { return weights_.layouts(); }
  std::vector<std::string> value_names() const override;
  std::vector<float> value(const std::string& name) const override;

 private:
  bool run(CompiledFunctions& compiled, const Batch& batch, const Interrupt* interrupt);
  std::span<const float> outputs_of(std::string_view function) const;

  const KernelTable& kernels_;
  const std::shared_ptr<ThreadPool> pool_;
  Weights weights_;
  KvStorage kv_;
  StateRuns states_;
  CompiledFunctions compiled_;
  KeptFunctions<CompiledFunctions> keeping_;
  std::int64_t biased_heads_ = 0;        // query heads that share keys and have a relative bias
  const CompiledSteps* last_ = nullptr;  // function that ran last
  std::int32_t num_outputs_ = 0;
  std::int32_t num_tokens_ = 0;
};

}  // namespace sterna::cpu
