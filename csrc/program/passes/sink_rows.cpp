/// sink_rows: rows whose logits nobody wants are dropped behind the last attention.
#include <algorithm>
#include <array>
#include <map>
#include <string_view>
#include <unordered_set>

#include "program/passes/passes.h"
#include "program/passes/rewrite.h"

namespace sterna {

namespace {

/// Ops that compute each row from the same row of their operands and nothing else.
bool is_row_wise(std::string_view op) {
  static constexpr std::array<std::string_view, 16> kOps = {
      "linear", "head_linear", "rms_norm", "layer_norm", "glu",     "route", "expert_glu", "activation",
      "add",    "mul",         "scale",    "clamp",      "reshape", "split", "concat",     "lora"};
  return std::ranges::find(kOps, op) != kOps.end();
}

/// Nodes whose results only reach the logits, row by row: all readers are such nodes themselves, or unembed.
std::vector<bool> sinking_nodes(const Function& function, const Uses& uses) {
  std::vector<bool> sinks(function.nodes.size());
  for (std::size_t i = function.nodes.size(); i-- > 0;) {
    const Node& node = function.nodes[i];
    if (node.op == "unembed") {
      sinks[i] = true;
      continue;
    }
    bool is_read = false;
    bool reaches_others = !is_row_wise(node.op);
    for (const ValueId id : node.outputs) {
      reaches_others = reaches_others || uses.is_returned(id);
      for (const int reader : uses.readers(id)) {
        is_read = true;
        reaches_others = reaches_others || !sinks[static_cast<std::size_t>(reader)];
      }
    }
    sinks[i] = is_read && !reaches_others;
  }
  return sinks;
}

std::string unique_name(const Program& program, const std::string& base) {
  std::unordered_set<std::string_view> names;
  for (const Value& value : program.values) {
    if (value.kind != ValueKind::kWeight) names.insert(value.name);
  }
  std::string name = base;
  for (int i = 1; names.contains(name); ++i) name = base + "." + std::to_string(i);
  return name;
}

}  // namespace

void sink_rows(Program& program) {
  for (Function& function : program.functions) {
    const Uses uses(program, function);
    const std::vector<bool> sinks = sinking_nodes(function, uses);
    // unembed picks its rows itself, so that there is nothing to gain where it sinks alone.
    const auto sinks_more = [&](const Node& node) {
      const int producer = uses.producer_index(node.input("x"));
      return producer >= 0 && sinks[static_cast<std::size_t>(producer)];
    };
    const auto is_tokens = [&](ValueId id) {
      const Value& value = program.value(id);
      return value.kind == ValueKind::kNode && value.shape[0].size == Dim::kTokens;
    };
    std::vector<Node> nodes;
    std::map<ValueId, ValueId> taken;  // by the value on T rows, the one on L rows
    for (std::size_t i = 0; i < function.nodes.size(); ++i) {
      Node node = std::move(function.nodes[i]);
      if (sinks[i] && (node.op != "unembed" || sinks_more(node))) {
        for (Operand& operand : node.inputs) {
          if (!is_tokens(operand.value)) continue;
          const auto [found, is_new] = taken.try_emplace(operand.value, kNoValue);
          if (is_new) {
            Value rows = program.value(operand.value);
            rows.name = unique_name(program, rows.name + ".rows");
            rows.shape[0] = {Dim::kOutputs};
            found->second = static_cast<ValueId>(program.values.size());
            nodes.push_back({"take_rows", rows.name, {{"x", operand.value}}, {found->second}, {}, node.source});
            program.values.push_back(std::move(rows));
          }
          operand.value = found->second;
        }
        if (node.op != "unembed") {
          for (const ValueId id : node.outputs) program.values[static_cast<std::size_t>(id)].shape[0] = {Dim::kOutputs};
        }
      }
      nodes.push_back(std::move(node));
    }
    function.nodes = std::move(nodes);
  }
}

}  // namespace sterna
