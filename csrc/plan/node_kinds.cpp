#include "plan/node_kinds.h"

#include <algorithm>

#include "base/error.h"

namespace sterna {
void unsupported(const Node& node, const std::string& problem) {
  throw UnsupportedModelError(node.op + " " + node.name + ": " + problem + " (" + node.source + ")");
}

EmbeddedIds embedded_ids(const Program& program, const Node& embed) {
  const std::string& name = program.value(embed.input("tokens")).name;
  if (name == "positions") return EmbeddedIds::kPositions;
  return name == "token_types" ? EmbeddedIds::kTokenTypes : EmbeddedIds::kTokens;
}

std::int64_t row_floats(const Program& program, ValueId value) {
  std::int64_t floats = 1;
  const Shape& shape = program.value(value).shape;
  for (std::size_t i = 1; i < shape.size(); ++i) floats *= shape[i].size;
  return floats;
}

bool is_first_embedding(const Program& program, const Node& embed) {
  for (const Function& function : program.functions) {
    const auto first = std::ranges::find_if(function.nodes, [&](const Node& node) {
      return node.op == "embed" && embedded_ids(program, node) == EmbeddedIds::kTokens;
    });
    if (first != function.nodes.end() && first->outputs == embed.outputs) return true;
  }
  return false;
}

std::int64_t received_floats(const Program& program, const Function& function) {
  std::int64_t floats = 0;
  for (const Node& node : function.nodes) {
    if (node.op != "receive") continue;
    for (const ValueId id : node.outputs) floats += row_floats(program, id);
  }
  return floats;
}

bool is_sent(const Function& function) {
  return std::ranges::any_of(function.nodes, [&](const Node& node) {
    return node.op == "send" && node.outputs.at(0) == function.outputs.at(0);
  });
}

ActivationKind activation_kind(const Node& node, std::string_view attribute) {
  const std::string& name = node.text(attribute);
  if (name == "silu") return ActivationKind::kSilu;
  if (name == "gelu") return ActivationKind::kGelu;
  if (name == "gelu_tanh") return ActivationKind::kGeluTanh;
  if (name == "relu") return ActivationKind::kRelu;
  if (name == "relu2") return ActivationKind::kRelu2;
  if (name == "sigmoid") return ActivationKind::kSigmoid;
  if (name == "tanh") return ActivationKind::kTanh;
  if (name == "clamped_swiglu") return ActivationKind::kClampedSwiglu;
  if (name == "softplus") return ActivationKind::kSoftplus;
  unsupported(node, "there is no activation \"" + name + "\"");
}

PoolKind pool_kind(const Node& pool) {
  const std::string& kind = pool.text("kind");
  return kind == "mean" ? PoolKind::kMean : kind == "cls" ? PoolKind::kFirst : PoolKind::kLast;
}

void check_lora_result(const Program& program, const Node& lora) {
  const ValueId y = lora.input("y");
  for (const Function& function : program.functions) {
    std::ptrdiff_t readers = std::ranges::count(function.outputs, y);
    for (const Node& other : function.nodes) {
      readers += std::ranges::count(other.inputs, y, &Operand::value);
      const bool is_view = other.op == "reshape" || other.op == "split" || other.op == "store_kv";
      if (is_view && std::ranges::count(other.outputs, y) > 0) unsupported(lora, "y is a view of what others read");
    }
    if (readers > 1) unsupported(lora, "y is read by others too");
  }
}

}  // namespace sterna
