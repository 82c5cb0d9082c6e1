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

CpuPlanOptions checked(CpuPlanOptions options) {
  if (options.max_tokens < 1 || options.max_outputs < 1) {
    throw ArgumentError("max_tokens is " + std::to_string(options.max_tokens) + " and max_outputs " +
                        std::to_string(options.max_outputs) + "; both must be at least 1");
  }
  options.max_outputs = std::min(options.max_outputs, options.max_tokens);
  return options;
}

std::string_view function_of(const Batch& batch) { return batch.encode ? "encode" : "logits"; }

/// Whether rows see later ones, or the result is made of rows other than the last.
bool needs_whole_sequences(const Function& function) {
  return std::any_of(function.nodes.begin(), function.nodes.end(), [](const Node& node) {
    return (node.op == "attention" && !node.flag("causal")) || (node.op == "pool" && node.text("kind") != "last");
  });
}

/// All values of many rows may be more than the memory that is left: this is not worth the process.
void check_room(std::uint64_t bytes) {
  constexpr std::uint64_t kShare = 4;
  if (bytes > physical_memory() / kShare) {
    throw MemoryBudgetError("keeping values takes " + std::to_string(bytes) +
                            " bytes, more than a quarter of the memory");
  }
}

/// The pools whose pages a function's nodes write or read, ascending.
std::vector<std::size_t> used_pools(const Function& function, const KvStorage& kv) {
  std::set<std::size_t> pools;
  for (const Node& node : function.nodes) {
    if (node.op == "attention" || node.op == "store_kv") pools.insert(kv.layer(node.integer("layer")).pool);
  }
  if (kv.state_pool() >= 0) pools.insert(static_cast<std::size_t>(kv.state_pool()));
  return {pools.begin(), pools.end()};
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

/// Rows that every table of such ids has.
std::int32_t table_rows(const Program& program, EmbeddedIds ids) {
  std::int64_t count = std::numeric_limits<std::int32_t>::max();
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op != "embed" || embedded_ids(program, node) != ids) continue;
      count = std::min(count, program.value(node.input("w")).shape[0].size);
    }
  }
  return static_cast<std::int32_t>(count);
}

}  // namespace

PlanMemory plan_memory(const Program& program, const CpuPlanOptions& wanted) {
  const CpuPlanOptions options = checked(wanted);
  const KernelTable& kernels = kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa));
  const Weights weights(program);
  PlanMemory memory;
  memory.weights = weights.bytes();
  memory.scratch = CompiledFunctions::bytes_of(program, function_names(program), weights,
                                               {options.max_tokens, options.max_outputs, &kernels, options.keep_values},
                                               thread_count(options.threads));
  const KvStorage kv(program, options.kv_type);
  memory.kv_pools.assign(kv.pools().begin(), kv.pools().end());
  return memory;
}

CpuPlan::CpuPlan(const Program& program, const TensorSource& source, const CpuPlanOptions& options)
    : options_(checked(options)),
      kernels_(kernel_table(options.isa.empty() ? chosen_level() : std::string_view(options.isa))),
      program_(program),
      pool_(options.pool ? options.pool : std::make_shared<ThreadPool>(thread_count(options.threads))),
      weights_(program_, source, *pool_),
      kv_(program_, options.kv_type) {
  compiled_ = CompiledFunctions::compile(program_, function_names(program_), weights_,
                                         {options_.max_tokens, options_.max_outputs, &kernels_, options_.keep_values},
                                         pool_->size());
  for (CompiledSteps& steps : compiled_.functions) steps.pools = used_pools(program_.function(steps.function), kv_);
  biased_heads_ = biased_heads(program_);
  longrope_context_ = static_cast<std::int32_t>(
      std::min<std::int64_t>(sterna::longrope_context(program_), std::numeric_limits<std::int32_t>::max()));
  num_token_ids_ = table_rows(program_, EmbeddedIds::kTokens);
  num_positions_ = table_rows(program_, EmbeddedIds::kPositions);
  for (const Function& function : program_.functions) {
    for (const Node& node : function.nodes) {
      if (node.op == "embed" && is_first_embedding(program_, node)) {
        const auto size = static_cast<std::int32_t>(program_.value(node.input("w")).shape[1].size);
        if (hidden_size_ != 0 && hidden_size_ != size) {
          throw UnsupportedModelError("embed " + node.name + ": rows of " + std::to_string(size) +
                                      " numbers, those of another function have " + std::to_string(hidden_size_) +
                                      " (" + node.source + ")");
        }
        hidden_size_ = size;
      } else if (node.op == "lora") {
        num_adapters_ = std::max(num_adapters_, static_cast<std::int32_t>(node.integer("adapter")) + 1);
      }
    }
  }
  if (const CompiledSteps* logits = compiled_.find("logits")) {
    num_token_ids_ = std::min(num_token_ids_, logits->output_size);
  }
  if (const CompiledSteps* encode = compiled_.find("encode")) {
    const bool keeps =
        std::ranges::any_of(kv_.pools(), [](const auto& pool) { return pool.kind == KvPoolKind::kCross; });
    encoding_ = {encode->output_size, keeps, needs_whole_sequences(program_.function("encode"))};
  }
}

std::int32_t CpuPlan::vocab_size() const {
  const CompiledSteps* logits = compiled_.find("logits");
  return logits == nullptr ? num_token_ids_ : logits->output_size;
}

bool CpuPlan::run(const Batch& batch, const Interrupt* interrupt) {
  check(batch);
  num_tokens_ = batch.num_tokens();
  num_outputs_ = batch.num_outputs();
  const std::string name(function_of(batch));
  if (!std::ranges::equal(batch.kept, kept_) || (!kept_.empty() && keeping_.find(name) == nullptr)) {
    keeping_ = {};
    kept_.clear();
    last_ = nullptr;
    if (!batch.kept.empty()) {
      const Lowering::Limits limits{options_.max_tokens, options_.max_outputs, &kernels_, false, batch.kept};
      check_room(CompiledFunctions::bytes_of(program_, {&name, 1}, weights_, limits, pool_->size()));
      keeping_ = CompiledFunctions::compile(program_, {&name, 1}, weights_, limits, pool_->size());
      kept_.assign(batch.kept.begin(), batch.kept.end());
    }
  }
  CompiledFunctions& compiled = kept_.empty() ? compiled_ : keeping_;
  last_ = compiled.find(name);
  return run(compiled, batch, interrupt);
}

std::int32_t CpuPlan::value_size(std::string_view name) const {
  const ValueId id = program_.find(ValueKind::kNode, name);
  if (id == kNoValue || !has_logits()) return 0;
  const bool is_there = std::ranges::any_of(program_.function("logits").nodes, [id](const Node& node) {
    return std::ranges::find(node.outputs, id) != node.outputs.end();
  });
  if (!is_there) return 0;
  std::int64_t size = 1;
  const Shape& shape = program_.value(id).shape;
  for (std::size_t i = 1; i < shape.size(); ++i) size *= shape[i].size;
  return static_cast<std::int32_t>(size);
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
  if (has_state) states_.begin(batch, kv_);
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
  check(batch);
  const std::string name(function_of(batch));
  const Lowering::Limits limits{batch.num_tokens(), std::max(1, batch.num_outputs()), &kernels_, true};
  check_room(CompiledFunctions::bytes_of(program_, {&name, 1}, weights_, limits, pool_->size()));
  CompiledFunctions checked = CompiledFunctions::compile(program_, {&name, 1}, weights_, limits, pool_->size());
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
  return {last_->output.data, static_cast<std::size_t>(num_outputs_) * static_cast<std::size_t>(last_->output_size)};
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

/// The rows [first_row, last_row) of one sequence find the pages that they write and see.
void CpuPlan::check_pages(const Batch& batch, std::size_t first_row, std::size_t last_row) const {
  const std::int64_t position = batch.positions[first_row];
  const auto num_rows = static_cast<std::int64_t>(last_row - first_row);
  if (batch.encode && encoding_.whole && (position != 0 || batch.positions[last_row - 1] + 1 != num_rows)) {
    throw ArgumentError("batch: a sequence to encode is not whole");
  }
  for (const std::size_t pool : compiled_.find(function_of(batch))->pools) {
    const auto table = batch.table(batch.sequences[first_row], pool);
    std::int64_t last = batch.positions[last_row - 1];
    if (kv_.pools()[pool].kind == KvPoolKind::kCross && !batch.encode) {
      const SequenceContext* context = batch.context(batch.sequences[first_row]);
      if (context == nullptr || context->encoder_tokens.empty()) {
        throw ArgumentError("batch: nothing was encoded for sequence " + std::to_string(batch.sequences[first_row]));
      }
      last = static_cast<std::int64_t>(context->encoder_tokens.size()) - 1;
    }
    if (last / kPageSlots >= static_cast<std::int64_t>(table.size())) {
      throw ArgumentError("batch: position " + std::to_string(last) + " has no page");
    }
    const auto need = [&](std::int64_t i) {
      if (table[static_cast<std::size_t>(i)] != kNoPage) return;
      throw ArgumentError("batch: page " + std::to_string(i) + " is missing, and in the window");
    };
    const std::int64_t window = kv_.pools()[pool].window;
    if (window == kStateWindow) {
      if (position > 0) need((position - 1) / kPageSlots);
      need(last / kPageSlots);
      continue;
    }
    const std::int64_t first = window == 0 ? 0 : std::max<std::int64_t>(0, position - window + 1);
    for (std::int64_t i = first / kPageSlots; i <= last / kPageSlots; ++i) need(i);
  }
}

void CpuPlan::check(const Batch& batch) const {
  const auto fail = [](const std::string& problem) { throw ArgumentError("batch: " + problem); };
  const std::size_t rows = batch.tokens.size();
  if (compiled_.find(function_of(batch)) == nullptr)
    fail("the model has no function " + std::string(function_of(batch)));
  if (rows == 0 || rows > static_cast<std::size_t>(max_tokens())) {
    fail(std::to_string(rows) + " tokens, the plan takes 1 to " + std::to_string(max_tokens()));
  }
  if (batch.positions.size() != rows || batch.sequences.size() != rows)
    fail("positions and sequences must be as many as tokens");
  if (batch.output_rows.size() > static_cast<std::size_t>(max_outputs())) {
    fail(std::to_string(batch.output_rows.size()) + " output rows, the plan takes " + std::to_string(max_outputs()));
  }
  const std::size_t pools = kv_.pools().size();
  if (batch.num_pools != pools || batch.page_tables.size() % pools != 0) {
    fail(std::to_string(batch.page_tables.size()) + " page tables, each sequence has " + std::to_string(pools));
  }
  const std::size_t num_sequences = batch.page_tables.size() / pools;
  if (!batch.long_sequences.empty() && batch.long_sequences.size() != num_sequences) {
    fail(std::to_string(batch.long_sequences.size()) + " of " + std::to_string(num_sequences) +
         " sequences say whether they are long");
  }
  for (std::size_t i = 0; i < batch.page_tables.size(); ++i) {
    const std::int32_t limit = num_pages(i % pools);
    for (const std::int32_t page : batch.page_tables[i]) {
      if (page != kNoPage && (page < 0 || page >= limit)) {
        fail("page " + std::to_string(page) + " of " + std::to_string(limit));
      }
    }
  }
  if (!batch.contexts.empty() && batch.contexts.size() != num_sequences) {
    fail(std::to_string(batch.contexts.size()) + " contexts for " + std::to_string(num_sequences) + " sequences");
  }
  std::size_t first_row = 0;
  for (std::size_t i = 0; i < rows; ++i) {
    if (batch.positions[i] < 0) fail("position " + std::to_string(batch.positions[i]));
    if (batch.positions[i] >= num_positions_) {
      fail("position " + std::to_string(batch.positions[i]) + " is beyond the " + std::to_string(num_positions_) +
           " that the model has learned");
    }
    if (batch.sequences[i] < 0 || static_cast<std::size_t>(batch.sequences[i]) >= num_sequences)
      fail("sequence " + std::to_string(batch.sequences[i]));
    const SequenceContext* context = batch.context(batch.sequences[i]);
    const std::int64_t given = context == nullptr || hidden_size_ == 0
                                   ? 0
                                   : static_cast<std::int64_t>(context->embeddings.size()) / hidden_size_;
    if (batch.tokens[i] < -given || batch.tokens[i] >= num_token_ids_)
      fail("token " + std::to_string(batch.tokens[i]) + " is not in the vocabulary");
    if (i + 1 < rows && batch.sequences[i + 1] == batch.sequences[i]) {
      if (batch.positions[i + 1] <= batch.positions[i]) fail("positions of a sequence must ascend");
      continue;
    }
    check_pages(batch, first_row, i + 1);
    first_row = i + 1;
  }
  if (kv_.state_pool() >= 0) StateRuns::check(batch, kv_);
  for (std::size_t i = 0; i < batch.output_rows.size(); ++i) {
    const std::int32_t row = batch.output_rows[i];
    if (row < 0 || static_cast<std::size_t>(row) >= rows) fail("output row " + std::to_string(row));
  }
}

}  // namespace sterna::cpu
