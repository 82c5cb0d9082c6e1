/// The CPU backend's Plan: compiles a Program, and runs its steps on a pool of threads.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cpu/kv_storage.h"
#include "cpu/lowering.h"
#include "cpu/steps.h"
#include "cpu/thread_pool.h"
#include "cpu/weights.h"
#include "plan/plan.h"
#include "plan/tensor_source.h"
#include "program/program.h"

namespace sterna::cpu {

struct CpuPlanOptions {
  int threads = 0;  // 0: one per CPU that this process may use
  std::string isa;  // empty: chosen_level()
  KvType kv_type = KvType::kF16;
  std::int32_t max_tokens = 512;
  std::int32_t max_outputs = 64;
  bool keep_values = false;  // every result of a node can be looked at after a run
};

/// What a CpuPlan of this program will hold, found out without allocating any of it.
PlanMemory plan_memory(const Program& program, const CpuPlanOptions& options);

class CpuPlan final : public Plan {
 public:
  /// Compiles the function "logits". The program is used as it is: fuse it first for speed. Throws
  /// UnsupportedModelError, DeviceError, MemoryBudgetError, and what the source throws.
  CpuPlan(const Program& program, const TensorSource& source, const CpuPlanOptions& options);

  bool run(const Batch& batch, const std::atomic<bool>* cancelled) override;
  std::span<const float> logits() const override;
  void reserve_pages(std::int32_t num_pages) override { kv_.reserve(num_pages); }
  std::int32_t num_pages() const override { return kv_.num_pages(); }
  std::int32_t vocab_size() const override { return vocab_size_; }
  std::int32_t max_tokens() const override { return options_.max_tokens; }
  std::int32_t max_outputs() const override { return options_.max_outputs; }
  PlanMemory memory() const override;

  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_.size(); }
  KvType kv_type() const { return kv_.type(); }
  std::map<std::string, int> layouts() const { return weights_.layouts(); }

  /// Names of the values that value() knows, in execution order. With keep_values only.
  std::vector<std::string> value_names() const;
  /// Rows of a node's result after a run, [rows, features], copied.
  std::vector<float> value(const std::string& name) const;

 private:
  struct KeptValue {
    std::string name;
    Rows rows;
    std::int64_t size;
  };

  void check(const Batch& batch) const;

  const CpuPlanOptions options_;
  const KernelTable& kernels_;
  ThreadPool pool_;
  Weights weights_;
  KvStorage kv_;
  std::deque<std::shared_ptr<void>> arguments_;
  std::vector<Step> few_rows_, many_rows_;
  std::vector<WorkRange> ranges_;  // [step][worker]
  Buffer arena_;
  std::vector<WorkerScratch> scratch_;
  std::vector<KeptValue> kept_;
  Rows logits_;
  std::int32_t vocab_size_ = 0;
  std::int32_t num_token_ids_ = 0;  // ids that every embedding table has a row for
  std::int32_t num_outputs_ = 0;
  std::int32_t num_tokens_ = 0;
};

}  // namespace sterna::cpu
