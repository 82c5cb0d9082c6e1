#include "cpu/cpu_plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "cpu/cores.h"
#include "cpu/isa.h"
#include "cpu/lower_ops.h"
#include "program/rope.h"

namespace sterna::cpu {
namespace {

constexpr int kMaxThreads = 1024;

int thread_count(int wanted) {
  if (wanted < 0 || wanted > kMaxThreads) {
    throw ArgumentError("threads is " + std::to_string(wanted) + ", must be from 1 to " + std::to_string(kMaxThreads));
  }
  return wanted == 0 ? available_cpus() : wanted;
}

/// All values of many rows may be more than the memory that is left: this is not worth the process.
void check_room(std::uint64_t bytes) {
  constexpr std::uint64_t kShare = 4;
  if (bytes > physical_memory() / kShare) {
    throw MemoryBudgetError("keeping values takes " + std::to_string(bytes) +
                            " bytes, more than a quarter of the memory");
  }
}

/// Of attention with a relative bias, most query heads that share keys.
std::int64_t biased_heads(const Program& program) {
  std::int64_t most = 0;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op != "attention" || node.input("relative_bias") == kNoValue) continue;
      const auto slot = std::ranges::find(program.kv_slots, node.integer("layer"), &KvSlot::layer);
      most = std::max(most, program.value(node.input("q")).shape[1].size / slot->num_kv_heads);
    }
  }
  return std::min<std::int64_t>(most, kMaxAttentionQueries);
}

}  // namespace

PlanMemory plan_memory(const Program& program, const CpuPlanOptions& options) {
  const std::int32_t max_outputs = checked_outputs(options.max_tokens, options.max_outputs);
  const KernelTable& kernels = kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa));
  const Weights weights(program);
  PlanMemory memory;
  memory.weights = weights.bytes();
  memory.scratch = CompiledFunctions::bytes_of(program, function_names(program), weights, kernels,
                                               {options.max_tokens, max_outputs, options.keep_values},
                                               thread_count(options.threads));
  const KvLayout kv(program, options.kv_type, kKvBackend);
  memory.kv_pools.assign(kv.pools().begin(), kv.pools().end());
  return memory;
}

CpuPlan::CpuPlan(const Program& program, const TensorSource& source, const CpuPlanOptions& options)
    : ProgramPlan(program, KvLayout(program, options.kv_type, kKvBackend), options.max_tokens, options.max_outputs),
      kernels_(kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa))),
      pool_(options.pool ? options.pool : std::make_shared<ThreadPool>(thread_count(options.threads))),
      weights_(this->program(), source, *pool_),
      kv_(layout()) {
  compiled_ = CompiledFunctions::compile(this->program(), function_names(this->program()), weights_, kernels_,
                                         {max_tokens(), max_outputs(), options.keep_values}, pool_->size());
  biased_heads_ = biased_heads(this->program());
}

bool CpuPlan::run(const Batch& batch, const Interrupt* interrupt) {
  check(batch, kv_);
  num_tokens_ = batch.num_tokens();
  num_outputs_ = batch.num_outputs();
  last_ = nullptr;
  CompiledFunctions& compiled = keeping_.choose(compiled_, batch, [&](const std::string& name) {
    const BufferPlan::Limits limits{max_tokens(), max_outputs(), false, batch.kept};
    check_room(CompiledFunctions::bytes_of(program(), {&name, 1}, weights_, kernels_, limits, pool_->size()));
    return CompiledFunctions::compile(program(), {&name, 1}, weights_, kernels_, limits, pool_->size());
  });
  last_ = compiled.find(function_of(batch));
  return run(compiled, batch, interrupt);
}

std::span<const float> CpuPlan::kept_row(std::string_view name, std::int32_t row, std::size_t output) const {
  if (last_ == nullptr) return {};
  const auto found = std::ranges::find(last_->kept, name, &CompiledSteps::KeptValue::name);
  if (found == last_->kept.end()) return {};
  const std::int64_t at = found->rows.outputs ? static_cast<std::int64_t>(output) : row;
  return {found->rows.row(at), static_cast<std::size_t>(found->size)};
}

bool CpuPlan::run(CompiledFunctions& compiled, const Batch& batch, const Interrupt* interrupt) {
  CompiledSteps& function = *compiled.find(function_of(batch));
  std::size_t pages = 0;
  for (const auto& table : batch.page_tables) pages = std::max(pages, table.size());
  for (WorkerScratch& scratch : compiled.scratch) {
    if (scratch.key_tiles.size() < pages) {
      scratch.value_tiles.resize(pages);
      scratch.key_tiles.resize(pages);
      // Offsets of all keys from all rows of a sequence that long, and of those that fill its pages.
      scratch.key_biases.resize(static_cast<std::size_t>(biased_heads_) * 2 * (pages + 1) * kPageSlots);
    }
  }
  for (WorkRange& range : function.ranges) range.taken.store(0, std::memory_order_relaxed);

  const std::vector<Step>& steps = batch.num_tokens() <= kMaxFusedRows ? function.few_rows : function.many_rows;
  const bool has_state = kv_.state_pool() >= 0;
  if (has_state) states_.begin(batch, static_cast<std::size_t>(kv_.state_pool()), kv_);
  // The step after which the run stops. A number and not a flag: worker 0 may already be in the next step, and set it
  // there, while another has yet to look at it behind the barrier of this one.
  std::atomic<std::size_t> last_step{steps.size()};
  pool_->run([&](int worker) {
    StepContext context;
    context.batch = &batch;
    context.kernels = &kernels_;
    context.kv = &kv_;
    context.states = &states_;
    context.scratch = &compiled.scratch[static_cast<std::size_t>(worker)];
    context.worker = worker;
    context.num_workers = pool_->size();
    for (std::size_t i = 0; i < steps.size(); ++i) {
      context.ranges = &function.ranges[i * static_cast<std::size_t>(pool_->size())];
      steps[i].run(steps[i].arguments, context);
      if (i + 1 < steps.size() && steps[i + 1].warm != nullptr) steps[i + 1].warm(steps[i + 1].arguments, context);
      // One worker decides before the barrier, so that all agree behind it.
      if (worker == 0 && interrupt != nullptr && interrupt->due()) {
        last_step.store(i, std::memory_order_relaxed);
      }
      pool_->barrier().wait();
      if (last_step.load(std::memory_order_relaxed) <= i) return;
    }
  });
  const bool complete = last_step.load(std::memory_order_relaxed) == steps.size();
  if (has_state && complete) states_.finish(kv_);
  return complete;
}

std::string CpuPlan::first_non_finite(const Batch& batch, std::int32_t row) {
  check(batch, kv_);
  const std::string name(function_of(batch));
  const BufferPlan::Limits limits{batch.num_tokens(), std::max(1, batch.num_outputs()), true};
  check_room(CompiledFunctions::bytes_of(program(), {&name, 1}, weights_, kernels_, limits, pool_->size()));
  CompiledFunctions checked =
      CompiledFunctions::compile(program(), {&name, 1}, weights_, kernels_, limits, pool_->size());
  run(checked, batch, nullptr);
  const auto output = std::find(batch.output_rows.begin(), batch.output_rows.end(), row);
  for (const CompiledSteps::KeptValue& value : checked.functions[0].kept) {
    if (value.rows.outputs && output == batch.output_rows.end()) continue;
    const float* data = value.rows.row(value.rows.outputs ? output - batch.output_rows.begin() : row);
    if (std::all_of(data, data + value.size, [](float x) { return std::isfinite(x); })) continue;
    return value.name + " (" + value.source + ")";
  }
  return {};
}

void CpuPlan::copy_page(std::size_t pool, std::int32_t from, std::int32_t to) {
  const auto source = kv_.page(pool, from);
  std::copy(source.begin(), source.end(), kv_.page(pool, to).begin());
}

void CpuPlan::read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const {
  const auto source = kv_.page(pool, page);
  if (bytes.size() != source.size()) throw ArgumentError("a page has " + std::to_string(source.size()) + " bytes");
  std::copy(source.begin(), source.end(), bytes.begin());
}

void CpuPlan::write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) {
  const auto target = kv_.page(pool, page);
  if (bytes.size() != target.size()) throw ArgumentError("a page has " + std::to_string(target.size()) + " bytes");
  std::copy(bytes.begin(), bytes.end(), target.begin());
}

std::span<const float> CpuPlan::outputs_of(std::string_view function) const {
  if (last_ == nullptr || last_->function != function) return {};
  const std::int32_t rows = last_->output.outputs ? num_outputs_ : num_tokens_;
  return {last_->output.data, static_cast<std::size_t>(rows) * static_cast<std::size_t>(last_->output_size)};
}

PlanMemory CpuPlan::memory() const {
  PlanMemory memory;
  memory.weights = weights_.bytes();
  memory.scratch = compiled_.bytes();
  memory.kv_pools.assign(kv_.pools().begin(), kv_.pools().end());
  return memory;
}

std::vector<std::string> CpuPlan::value_names() const {
  std::vector<std::string> names;
  for (const CompiledSteps& function : compiled_.functions) {
    for (const auto& value : function.kept) names.push_back(value.name);
  }
  return names;
}

std::vector<float> CpuPlan::value(const std::string& name) const {
  static const CompiledSteps kNone;
  const auto& kept = (last_ == nullptr ? kNone : *last_).kept;
  const auto found = std::find_if(kept.begin(), kept.end(), [&](const auto& value) { return value.name == name; });
  if (found == kept.end()) throw ArgumentError("the plan keeps no value \"" + name + "\" of what ran last");
  const std::int64_t rows = found->rows.outputs ? num_outputs_ : num_tokens_;
  std::vector<float> copy;
  copy.reserve(static_cast<std::size_t>(rows * found->size));
  for (std::int64_t row = 0; row < rows; ++row) {
    copy.insert(copy.end(), found->rows.row(row), found->rows.row(row) + found->size);
  }
  return copy;
}

}  // namespace sterna::cpu
