#include "cpu/cpu_plan.h"

#include <algorithm>

#include "base/error.h"
#include "base/float_mode.h"
#include "cpu/cores.h"
#include "cpu/isa.h"

namespace sterna::cpu {
namespace {

constexpr int kMaxThreads = 1024;

int thread_count(int wanted) {
  if (wanted < 0 || wanted > kMaxThreads) {
    throw ArgumentError("threads is " + std::to_string(wanted) + ", must be from 1 to " + std::to_string(kMaxThreads));
  }
  return wanted == 0 ? available_cpus() : wanted;
}

CpuPlanOptions checked(CpuPlanOptions options) {
  if (options.max_tokens < 1 || options.max_outputs < 1) {
    throw ArgumentError("max_tokens is " + std::to_string(options.max_tokens) + " and max_outputs " +
                        std::to_string(options.max_outputs) + "; both must be at least 1");
  }
  options.max_outputs = std::min(options.max_outputs, options.max_tokens);
  return options;
}

}  // namespace

PlanMemory plan_memory(const Program& program, const CpuPlanOptions& wanted) {
  const CpuPlanOptions options = checked(wanted);
  const KernelTable& kernels = kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa));
  const Weights weights(program);
  Lowering lowering(program, weights, {options.max_tokens, options.max_outputs, &kernels, options.keep_values});
  lowering.lower(program.function("logits"));
  const std::int64_t per_worker = lowering.scratch_floats() * 4 + lowering.unpacked_bytes() + lowering.tiles_bytes();
  PlanMemory memory;
  memory.weights = weights.bytes();
  memory.scratch =
      static_cast<std::uint64_t>(lowering.plan_memory().arena_bytes + per_worker * thread_count(options.threads));
  memory.kv_page = static_cast<std::uint64_t>(KvStorage(program.kv_slots, options.kv_type).page_bytes());
  return memory;
}

CpuPlan::CpuPlan(const Program& program, const TensorSource& source, const CpuPlanOptions& options)
    : options_(checked(options)),
      kernels_(kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa))),
      pool_(thread_count(options.threads)),
      weights_(program, source, pool_),
      kv_(program.kv_slots, options.kv_type) {
  const FloatMode mode;
  const Function& function = program.function("logits");
  Lowering lowering(program, weights_, {options_.max_tokens, options_.max_outputs, &kernels_, options_.keep_values});
  lowering.lower(function);
  const Placement placement = lowering.plan_memory();
  arena_ = Buffer(static_cast<std::size_t>(placement.arena_bytes));
  lowering.patch(placement, arena_.data());
  few_rows_ = lowering.few_rows();
  many_rows_ = lowering.many_rows();
  arguments_ = lowering.take_arguments();
  ranges_ = std::vector<WorkRange>(many_rows_.size() * static_cast<std::size_t>(pool_.size()));

  const auto rows_of = [&](ValueId value) {
    const Place& place = lowering.place_of(value);
    Rows rows;
    rows.data = reinterpret_cast<float*>(arena_.data() + placement.offsets[static_cast<std::size_t>(place.buffer)]) +
                place.offset;
    rows.stride = place.stride;
    rows.outputs = place.outputs;
    return rows;
  };
  const ValueId output = function.outputs.at(0);
  vocab_size_ = static_cast<std::int32_t>(lowering.row_size(output));
  logits_ = rows_of(output);
  if (!logits_.outputs || logits_.stride != vocab_size_) {
    throw UnsupportedModelError("the logits " + program.value(output).name + " are not the result of an unembed");
  }
  num_token_ids_ = vocab_size_;
  for (const Node& node : function.nodes) {
    if (node.op != "embed") continue;
    const std::int64_t rows = program.value(node.input("w")).shape[0].size;
    num_token_ids_ = static_cast<std::int32_t>(std::min<std::int64_t>(num_token_ids_, rows));
  }
  if (options_.keep_values) {
    for (const Node& node : function.nodes) {
      for (const ValueId value : node.outputs) {
        kept_.push_back({program.value(value).name, rows_of(value), lowering.row_size(value)});
      }
    }
  }
  scratch_.resize(static_cast<std::size_t>(pool_.size()));
  for (WorkerScratch& scratch : scratch_) {
    scratch.floats = Buffer(static_cast<std::size_t>(lowering.scratch_floats()) * sizeof(float));
    scratch.unpacked = Buffer(static_cast<std::size_t>(lowering.unpacked_bytes()));
    scratch.tiles = Buffer(static_cast<std::size_t>(lowering.tiles_bytes()));
  }
}

bool CpuPlan::run(const Batch& batch, const std::atomic<bool>* cancelled) {
  check(batch);
  std::size_t pages = 0;
  for (const auto& table : batch.page_tables) pages = std::max(pages, table.size());
  for (WorkerScratch& scratch : scratch_) {
    if (scratch.key_tiles.size() < pages) {
      scratch.value_tiles.resize(pages);
      scratch.key_tiles.resize(pages);
    }
  }
  for (WorkRange& range : ranges_) range.taken.store(0, std::memory_order_relaxed);
  num_tokens_ = batch.num_tokens();
  num_outputs_ = batch.num_outputs();

  const std::vector<Step>& steps = batch.num_tokens() <= kMaxFusedRows ? few_rows_ : many_rows_;
  // The step after which the run stops. A number and not a flag: worker 0 may already be in the next step, and set it
  // there, while another has yet to look at it behind the barrier of this one.
  std::atomic<std::size_t> last_step{steps.size()};
  pool_.run([&](int worker) {
    StepContext context;
    context.batch = &batch;
    context.kernels = &kernels_;
    context.kv = &kv_;
    context.scratch = &scratch_[static_cast<std::size_t>(worker)];
    context.worker = worker;
    context.num_workers = pool_.size();
    for (std::size_t i = 0; i < steps.size(); ++i) {
      context.ranges = &ranges_[i * static_cast<std::size_t>(pool_.size())];
      steps[i].run(steps[i].arguments, context);
      if (i + 1 < steps.size() && steps[i + 1].warm != nullptr) steps[i + 1].warm(steps[i + 1].arguments, context);
      // One worker decides before the barrier, so that all agree behind it.
      if (worker == 0 && cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
        last_step.store(i, std::memory_order_relaxed);
      }
      pool_.barrier().wait();
      if (last_step.load(std::memory_order_relaxed) <= i) return;
    }
  });
  return last_step.load(std::memory_order_relaxed) == steps.size();
}

std::span<const float> CpuPlan::logits() const {
  return {logits_.data, static_cast<std::size_t>(num_outputs_) * static_cast<std::size_t>(vocab_size_)};
}

PlanMemory CpuPlan::memory() const {
  PlanMemory memory;
  memory.weights = weights_.bytes();
  memory.scratch = arena_.size();
  for (const WorkerScratch& scratch : scratch_) {
    memory.scratch += scratch.floats.size() + scratch.unpacked.size() + scratch.tiles.size();
  }
  memory.kv_page = static_cast<std::uint64_t>(kv_.page_bytes());
  return memory;
}

std::vector<std::string> CpuPlan::value_names() const {
  std::vector<std::string> names;
  for (const KeptValue& value : kept_) names.push_back(value.name);
  return names;
}

std::vector<float> CpuPlan::value(const std::string& name) const {
  const auto found =
      std::find_if(kept_.begin(), kept_.end(), [&](const KeptValue& value) { return value.name == name; });
  if (found == kept_.end()) throw ArgumentError("the plan keeps no value \"" + name + "\"");
  const std::int64_t rows = found->rows.outputs ? num_outputs_ : num_tokens_;
  std::vector<float> copy;
  copy.reserve(static_cast<std::size_t>(rows * found->size));
  for (std::int64_t row = 0; row < rows; ++row) {
    copy.insert(copy.end(), found->rows.row(row), found->rows.row(row) + found->size);
  }
  return copy;
}

void CpuPlan::check(const Batch& batch) const {
  const auto fail = [](const std::string& problem) { throw ArgumentError("batch: " + problem); };
  const std::size_t rows = batch.tokens.size();
  if (rows == 0 || rows > static_cast<std::size_t>(max_tokens())) {
    fail(std::to_string(rows) + " tokens, the plan takes 1 to " + std::to_string(max_tokens()));
  }
  if (batch.positions.size() != rows || batch.sequences.size() != rows)
    fail("positions and sequences must be as many as tokens");
  if (batch.output_rows.size() > static_cast<std::size_t>(max_outputs())) {
    fail(std::to_string(batch.output_rows.size()) + " output rows, the plan takes " + std::to_string(max_outputs()));
  }
  for (std::size_t i = 0; i < rows; ++i) {
    if (batch.tokens[i] < 0 || batch.tokens[i] >= num_token_ids_)
      fail("token " + std::to_string(batch.tokens[i]) + " is not in the vocabulary");
    const auto sequence = static_cast<std::size_t>(batch.sequences[i]);
    if (batch.sequences[i] < 0 || sequence >= batch.page_tables.size())
      fail("sequence " + std::to_string(batch.sequences[i]));
    const auto page = static_cast<std::size_t>(batch.positions[i] / kPageSlots);
    if (batch.positions[i] < 0 || page >= batch.page_tables[sequence].size())
      fail("position " + std::to_string(batch.positions[i]) + " has no page");
  }
  for (const auto& table : batch.page_tables) {
    for (const std::int32_t page : table) {
      if (page < 0 || page >= num_pages()) fail("page " + std::to_string(page) + " of " + std::to_string(num_pages()));
    }
  }
  for (std::size_t i = 0; i < batch.output_rows.size(); ++i) {
    const std::int32_t row = batch.output_rows[i];
    if (row < 0 || static_cast<std::size_t>(row) >= rows) fail("output row " + std::to_string(row));
  }
}

}  // namespace sterna::cpu
