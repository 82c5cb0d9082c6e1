#include "program/builder.h"

#include <algorithm>

#include "base/error.h"
#include "program/op_table.h"
#include "program/slots.h"
#include "program/validate.h"

namespace sterna {

namespace {

bool stores_layer(const Function& function, std::int64_t layer) {
  return std::ranges::any_of(function.nodes,
                             [layer](const Node& node) { return stores_kv(node) && node.integer("layer") == layer; });
}

bool keeps_state(const Function& function, const StateSlot& slot) {
  return std::ranges::any_of(
      function.nodes, [&](const Node& node) { return node.op == slot.op && node.integer("layer") == slot.layer; });
}

}  // namespace

Function& ProgramBuilder::current() {
  if (program_.functions.empty()) begin_function("logits");
  return program_.functions.back();
}

ValueId ProgramBuilder::add_value(Value value) {
  if (const std::string problem = value_problem(value); !problem.empty()) throw ArgumentError("program: " + problem);
  auto& names = value.kind == ValueKind::kWeight ? weight_names_ : names_;
  if (!names.insert(value.name).second) throw ArgumentError("program: two values are named " + value.name);
  program_.values.push_back(std::move(value));
  return static_cast<ValueId>(program_.values.size() - 1);
}

ValueId ProgramBuilder::add_input(const std::string& name, const Shape& shape) {
  return add_value({name, ValueKind::kInput, shape, FormatId::kI32});
}

ValueId ProgramBuilder::add_weight(const std::string& name, const Shape& shape, FormatId format) {
  return add_value({name, ValueKind::kWeight, shape, format});
}

void ProgramBuilder::begin_function(const std::string& name) {
  if (std::ranges::find(program_.functions, name, &Function::name) != program_.functions.end()) {
    throw ArgumentError("program: two functions are named " + name);
  }
  if (!is_name(name)) throw ArgumentError("program: a function's name is empty, too long or has control characters");
  program_.functions.push_back({name, {}, {}});
}

std::vector<ValueId> ProgramBuilder::emit(Node node, const std::vector<std::string>& names) {
  Function& function = current();
  complete_attributes(node);
  node.outputs.clear();
  const std::vector<Shape> shapes = infer_shapes(program_, node);
  if (!is_source(node.source)) fail(node, "the source is too long or has control characters");
  if (!names.empty() && names.size() != shapes.size()) {
    fail(node, "has " + std::to_string(shapes.size()) + " results, not " + std::to_string(names.size()));
  }
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const std::string own = i == 0 ? node.name : node.name + "." + std::to_string(i);
    node.outputs.push_back(add_value({names.empty() ? own : names[i], ValueKind::kNode, shapes[i], FormatId::kF32}));
  }
  if (stores_kv(node)) {
    const KvSlot slot = kv_slot(program_, node);
    const auto place = std::ranges::lower_bound(program_.kv_slots, slot.layer, {}, &KvSlot::layer);
    if (place == program_.kv_slots.end() || place->layer != slot.layer) {
      program_.kv_slots.insert(place, slot);
    } else if (*place != slot || stores_layer(function, slot.layer)) {  // another function may use the same one
      fail(node, "layer " + std::to_string(slot.layer) + " has its KV slot already");
    }
  }
  if (is_recurrent(node.op)) {
    const StateSlot slot = state_slot(program_, node);
    const auto place = std::ranges::lower_bound(
        program_.state_slots, slot, [](const StateSlot& a, const StateSlot& b) { return a.comes_before(b); });
    if (place == program_.state_slots.end() || slot.comes_before(*place)) {
      program_.state_slots.insert(place, slot);
    } else if (*place != slot || keeps_state(function, slot)) {  // another function may use the same one
      fail(node, "layer " + std::to_string(slot.layer) + " has its " + slot.op + " state already");
    }
  }
  function.nodes.push_back(std::move(node));
  return function.nodes.back().outputs;
}

void ProgramBuilder::set_outputs(const std::vector<ValueId>& outputs) { current().outputs = outputs; }

Program ProgramBuilder::finish() {
  validate(program_);
  Program program = std::move(program_);
  *this = ProgramBuilder();
  return program;
}

}  // namespace sterna
