#include "program/passes/rewrite.h"

namespace sterna {

Uses::Uses(const Program& program, const Function& function)
    : function_(function),
      producers_(program.values.size(), -1),
      readers_(program.values.size()),
      returned_(program.values.size()) {
  for (std::size_t i = 0; i < function.nodes.size(); ++i) {
    const int index = static_cast<int>(i);
    for (const ValueId id : function.nodes[i].outputs) producers_[static_cast<std::size_t>(id)] = index;
    for (const Operand& operand : function.nodes[i].inputs) {
      readers_[static_cast<std::size_t>(operand.value)].push_back(index);
    }
  }
  for (const ValueId id : function.outputs) returned_[static_cast<std::size_t>(id)] = true;
}

const Node* Uses::producer(ValueId id) const {
  const int index = producer_index(id);
  return index < 0 ? nullptr : &function_.nodes[static_cast<std::size_t>(index)];
}

void erase_nodes(Function& function, const std::vector<bool>& erased) {
  std::vector<Node> kept;
  for (std::size_t i = 0; i < function.nodes.size(); ++i) {
    if (!erased[i]) kept.push_back(std::move(function.nodes[i]));
  }
  function.nodes = std::move(kept);
}

void set_input(Node& node, std::string_view role, ValueId value) {
  for (Operand& operand : node.inputs) {
    if (operand.role == role) operand.value = value;
  }
}

void drop_unused_results(Program& program) {
  std::vector<bool> kept(program.values.size());
  for (std::size_t i = 0; i < kept.size(); ++i) kept[i] = program.values[i].kind != ValueKind::kNode;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      for (const ValueId id : node.outputs) kept[static_cast<std::size_t>(id)] = true;
    }
  }
  std::vector<ValueId> renumbered(program.values.size(), kNoValue);
  std::vector<Value> values;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    if (!kept[i]) continue;
    renumbered[i] = static_cast<ValueId>(values.size());
    values.push_back(std::move(program.values[i]));
  }
  program.values = std::move(values);
  const auto renumber = [&](ValueId& id) { id = renumbered[static_cast<std::size_t>(id)]; };
  for (Function& function : program.functions) {
    for (Node& node : function.nodes) {
      for (Operand& operand : node.inputs) renumber(operand.value);
      for (ValueId& id : node.outputs) renumber(id);
    }
    for (ValueId& id : function.outputs) renumber(id);
  }
}

}  // namespace sterna
