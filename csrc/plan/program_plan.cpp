#include "plan/program_plan.h"

#include <algorithm>
#include <limits>
#include <set>

#include "base/error.h"
#include "plan/node_kinds.h"
#include "program/rope.h"

namespace sterna {
namespace {

/// Whether rows see later ones, or the result is made of rows other than the last.
bool needs_whole_sequences(const Function& function) {
  return std::any_of(function.nodes.begin(), function.nodes.end(), [](const Node& node) {
    return (node.op == "attention" && !node.flag("causal")) || (node.op == "pool" && node.text("kind") != "last");
  });
}

/// The pools whose pages a function's nodes write or read, ascending.
std::vector<std::size_t> used_pools(const Function& function, const KvLayout& kv) {
  std::set<std::size_t> pools;
  for (const Node& node : function.nodes) {
    if (node.op == "attention" || node.op == "store_kv") pools.insert(kv.layer(node.integer("layer")).pool);
  }
  if (kv.state_pool() >= 0) pools.insert(static_cast<std::size_t>(kv.state_pool()));
  return {pools.begin(), pools.end()};
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

std::int32_t checked_outputs(std::int32_t max_tokens, std::int32_t max_outputs) {
  if (max_tokens < 1 || max_outputs < 1) {
    throw ArgumentError("max_tokens is " + std::to_string(max_tokens) + " and max_outputs " +
                        std::to_string(max_outputs) + "; both must be at least 1");
  }
  return std::min(max_outputs, max_tokens);
}

ProgramPlan::ProgramPlan(const Program& program, const KvLayout& kv_layout, std::int32_t max_tokens,
                         std::int32_t max_outputs)
    : program_(program),
      kv_layout_(kv_layout),
      max_tokens_(max_tokens),
      max_outputs_(checked_outputs(max_tokens, max_outputs)) {
  for (const Function& function : program_.functions) {
    used_pools_[function.name] = used_pools(function, kv_layout_);
    received_floats_[function.name] = sterna::received_floats(program_, function);
  }
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
  const auto result_size = [&](std::string_view function) {
    return static_cast<std::int32_t>(row_floats(program_, program_.function(function).outputs.at(0)));
  };
  vocab_size_ = num_token_ids_;
  if (has_logits()) {
    vocab_size_ = result_size("logits");
    if (!is_sent(program_.function("logits"))) num_token_ids_ = std::min(num_token_ids_, vocab_size_);
  }
  if (used_pools_.contains("encode")) {
    const bool keeps =
        std::ranges::any_of(kv_layout_.pools(), [](const auto& pool) { return pool.kind == KvPoolKind::kCross; });
    encoding_ = {result_size("encode"), keeps, needs_whole_sequences(program_.function("encode"))};
  }
}

std::int32_t ProgramPlan::value_size(std::string_view name) const {
  const ValueId id = program_.find(ValueKind::kNode, name);
  if (id == kNoValue || !has_logits()) return 0;
  const bool is_there = std::ranges::any_of(program_.function("logits").nodes, [id](const Node& node) {
    return std::ranges::find(node.outputs, id) != node.outputs.end();
  });
  if (!is_there) return 0;
  return static_cast<std::int32_t>(row_floats(program_, id));
}

/// The rows [first_row, last_row) of one sequence find the pages that they write and see.
void ProgramPlan::check_pages(const Batch& batch, std::size_t first_row, std::size_t last_row) const {
  const std::int64_t position = batch.positions[first_row];
  const auto num_rows = static_cast<std::int64_t>(last_row - first_row);
  if (batch.encode && encoding_.whole && (position != 0 || batch.positions[last_row - 1] + 1 != num_rows)) {
    throw ArgumentError("batch: a sequence to encode is not whole");
  }
  for (const std::size_t pool : used_pools_.find(function_of(batch))->second) {
    const auto table = batch.table(batch.sequences[first_row], pool);
    std::int64_t last = batch.positions[last_row - 1];
    if (kv_layout_.pools()[pool].kind == KvPoolKind::kCross && !batch.encode) {
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
    const std::int64_t window = kv_layout_.pools()[pool].window;
    if (window == kStateWindow) {
      if (position > 0) need((position - 1) / kPageSlots);
      need(last / kPageSlots);
      continue;
    }
    const std::int64_t first = window == 0 ? 0 : std::max<std::int64_t>(0, position - window + 1);
    for (std::int64_t i = first / kPageSlots; i <= last / kPageSlots; ++i) need(i);
  }
}

void ProgramPlan::check(const Batch& batch, const StatePages& states) const {
  const auto fail = [](const std::string& problem) { throw ArgumentError("batch: " + problem); };
  const std::size_t rows = batch.tokens.size();
  if (!used_pools_.contains(function_of(batch))) fail("the model has no function " + std::string(function_of(batch)));
  if (rows == 0 || rows > static_cast<std::size_t>(max_tokens())) {
    fail(std::to_string(rows) + " tokens, the plan takes 1 to " + std::to_string(max_tokens()));
  }
  if (batch.positions.size() != rows || batch.sequences.size() != rows)
    fail("positions and sequences must be as many as tokens");
  if (batch.output_rows.size() > static_cast<std::size_t>(max_outputs())) {
    fail(std::to_string(batch.output_rows.size()) + " output rows, the plan takes " + std::to_string(max_outputs()));
  }
  if (!batch.largest.empty() && batch.largest.size() != batch.output_rows.size()) {
    fail(std::to_string(batch.largest.size()) + " numbers of largest logits for " +
         std::to_string(batch.output_rows.size()) + " output rows");
  }
  for (const std::int32_t count : batch.largest) {
    if (count < 0 || count > most_largest()) {
      fail(std::to_string(count) + " largest logits, the plan finds up to " + std::to_string(most_largest()));
    }
  }
  const std::size_t pools = kv_layout_.pools().size();
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
  const auto received = static_cast<std::size_t>(received_floats_.find(function_of(batch))->second);
  if (batch.received.size() != rows * received) {
    fail(std::to_string(batch.received.size()) + " numbers from the plan before this one, " + std::to_string(rows) +
         " rows have " + std::to_string(rows * received));
  }
  const bool has_tokens = received == 0 || hidden_size_ != 0;  // else the plan before this one has looked at them
  std::vector<bool> has_rows(num_sequences);
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
    if (has_tokens && (batch.tokens[i] < -given || batch.tokens[i] >= num_token_ids_))
      fail("token " + std::to_string(batch.tokens[i]) + " is not in the vocabulary");
    if (i + 1 < rows && batch.sequences[i + 1] == batch.sequences[i]) {
      if (batch.positions[i + 1] <= batch.positions[i]) fail("positions of a sequence must ascend");
      continue;
    }
    // A sequence's rows are one part of the batch, which writes its pages and goes on with its states.
    if (has_rows[static_cast<std::size_t>(batch.sequences[i])]) {
      fail("rows of sequence " + std::to_string(batch.sequences[i]) + " lie apart");
    }
    has_rows[static_cast<std::size_t>(batch.sequences[i])] = true;
    check_pages(batch, first_row, i + 1);
    first_row = i + 1;
  }
  if (kv_layout_.state_pool() >= 0) {
    StateRuns::check(batch, static_cast<std::size_t>(kv_layout_.state_pool()), states);
  }
  for (std::size_t i = 0; i < batch.output_rows.size(); ++i) {
    const std::int32_t row = batch.output_rows[i];
    if (row < 0 || static_cast<std::size_t>(row) >= rows) fail("output row " + std::to_string(row));
  }
}

}  // namespace sterna
