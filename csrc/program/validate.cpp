#include "program/validate.h"

#include <algorithm>
#include <map>
#include <ranges>
#include <set>
#include <unordered_set>
#include <utility>

#include "base/error.h"
#include "program/op_table.h"
#include "program/slots.h"

namespace sterna {

namespace {

constexpr std::size_t kMaxNameBytes = 256;
constexpr std::string_view kEncode = "encode";
// Of one weight, so that bytes of all of them can be added up.
constexpr std::int64_t kMaxElements = std::int64_t{1} << 40;

[[noreturn]] void broken(const std::string& what) { throw ArgumentError("program: " + what); }

bool is_printable(std::string_view text) {
  return std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) >= 0x20 && c != 0x7F; });
}

// Each value stands for itself: a good name, extents in range, a format that can hold a tensor.
void values_are_sound(const Program& program) {
  for (const Value& value : program.values) {
    if (const std::string problem = value_problem(value); !problem.empty()) broken(problem);
  }
}

// Weights have their own space of names; inputs and results share one.
void names_are_unique(const Program& program) {
  std::unordered_set<std::string_view> weights;
  std::unordered_set<std::string_view> others;
  for (const Value& value : program.values) {
    auto& names = value.kind == ValueKind::kWeight ? weights : others;
    if (!names.insert(value.name).second) broken("two values are named " + value.name);
  }
  std::unordered_set<std::string_view> functions;
  for (const Function& function : program.functions) {
    if (!is_name(function.name)) broken("a function's name is empty, too long or has control characters");
    if (!functions.insert(function.name).second) broken("two functions are named " + function.name);
  }
}

// Every operand is an input, a weight, or the result of an earlier node of the same function.
void operands_come_first(const Program& program, const Function& function) {
  const auto known = [&](ValueId id) { return id >= 0 && static_cast<std::size_t>(id) < program.values.size(); };
  std::vector<bool> defined(program.values.size());
  for (std::size_t i = 0; i < defined.size(); ++i) defined[i] = program.values[i].kind != ValueKind::kNode;
  for (const Node& node : function.nodes) {
    for (const Operand& operand : node.inputs) {
      if (!known(operand.value)) fail(node, operand.role + " is not a value of the program");
      if (!defined[static_cast<std::size_t>(operand.value)]) {
        fail(node, operand.role + " " + program.value(operand.value).name + " is used before it is computed");
      }
    }
    for (const ValueId id : node.outputs) {
      if (!known(id)) fail(node, "a result is not a value of the program");
      if (defined[static_cast<std::size_t>(id)]) fail(node, program.value(id).name + " is computed twice");
      defined[static_cast<std::size_t>(id)] = true;
    }
  }
  if (function.outputs.empty()) broken("function " + function.name + " has no outputs");
  for (const ValueId id : function.outputs) {
    if (!known(id) || program.value(id).kind != ValueKind::kNode || !defined[static_cast<std::size_t>(id)]) {
      broken("an output of function " + function.name + " is not computed in it");
    }
  }
}

// A result belongs to one node, and each has one.
void results_have_one_node(const Program& program) {
  std::vector<int> count(program.values.size());
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      for (const ValueId id : node.outputs) ++count[static_cast<std::size_t>(id)];
    }
  }
  for (std::size_t i = 0; i < count.size(); ++i) {
    if (count[i] != (program.values[i].kind == ValueKind::kNode ? 1 : 0)) {
      broken(program.values[i].name + " is the result of " + std::to_string(count[i]) + " nodes");
    }
  }
}

// A node does what the op table says; its first result bears its name.
void nodes_fit_the_op_table(const Program& program, const Function& function) {
  for (const Node& node : function.nodes) {
    const std::vector<Shape> shapes = infer_shapes(program, node);
    if (shapes.size() != node.outputs.size()) {
      fail(node, "has " + std::to_string(node.outputs.size()) + " results, not " + std::to_string(shapes.size()));
    }
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      const Value& value = program.value(node.outputs[i]);
      if (value.shape != shapes[i]) {
        fail(node, value.name + " has shape " + to_string(value.shape) + ", the op gives " + to_string(shapes[i]));
      }
    }
    if (program.value(node.outputs[0]).name != node.name) fail(node, "its first result must bear its name");
    if (!is_source(node.source)) fail(node, "the source is too long or has control characters");
  }
}

// Experts are those that a route chose, among as many as there are matrices.
void experts_come_from_a_route(const Program& program, const Function& function) {
  std::vector<std::int64_t> num_experts(program.values.size());  // of ids, what the route chose from
  for (const Node& node : function.nodes) {
    if (node.op == "route") {
      num_experts[static_cast<std::size_t>(node.outputs[0])] = program.value(node.input("x")).shape[1].size;
    } else if (node.op == "take_rows") {
      num_experts[static_cast<std::size_t>(node.outputs[0])] = num_experts[static_cast<std::size_t>(node.input("x"))];
    } else if (node.op == "expert_glu") {
      const ValueId ids = node.input("experts");
      const std::int64_t matrices = program.value(node.input("gate")).shape[0].size;
      if (num_experts[static_cast<std::size_t>(ids)] != matrices) {
        fail(node,
             "experts " + program.value(ids).name + " are not chosen by a route among " + std::to_string(matrices));
      }
    }
  }
}

// A function is a part of a chain once at each end: what it gets from the part before it, and what it gives the next.
void ends_of_a_chain_are_single(const Function& function) {
  int received = 0;
  for (const Node& node : function.nodes) {
    if (node.op == "receive" && ++received > 1) fail(node, "the function receives already");
    if (node.op == "send" && function.outputs != node.outputs) fail(node, "what is sent must be the function's result");
  }
}

// The KV slots are those of the nodes that store keys and values, by layer; others of the function share them
// afterwards, and other functions may use them too. What store_kv keeps of a text that is encoded is there for
// attention in other functions.
void slots_fit_the_attention_nodes(const Program& program) {
  std::map<std::int64_t, KvSlot> slots;
  const std::unordered_set<std::int64_t> kept = cross_layers(program);
  for (const Function& function : program.functions) {
    std::unordered_set<std::int64_t> stored;
    for (const Node& node : function.nodes) {
      if (node.op != "attention" && node.op != "store_kv") continue;
      const std::int64_t layer = node.integer("layer");
      if (stores_kv(node)) {
        if (!stored.insert(layer).second || (node.op == "attention" && kept.contains(layer))) {
          fail(node, "layer " + std::to_string(layer) + " has its KV slot already");
        }
        if (node.op == "store_kv" && function.name != kEncode) fail(node, "only the function encode keeps for others");
        const KvSlot slot = kv_slot(program, node);
        if (slots.try_emplace(layer, slot).first->second != slot) {
          fail(node, "another function keeps something else in layer " + std::to_string(layer));
        }
      } else if (kept.contains(layer)) {
        if (node.flag("causal") || function.name == kEncode) {
          fail(node, "what store_kv keeps is for attention in another function, which is not causal");
        }
      } else if (!stored.contains(layer)) {
        fail(node, "layer " + std::to_string(layer) + " has stored no keys and values yet");
      }
    }
  }
  const auto declared = std::views::values(slots);
  if (!std::ranges::equal(declared, program.kv_slots)) broken("the KV slots are not those of the attention nodes");
}

// The state slots are those of the recurrent nodes, by layer and op.
void slots_fit_the_recurrent_nodes(const Program& program) {
  std::map<std::pair<std::int64_t, std::string>, StateSlot> slots;
  for (const Function& function : program.functions) {
    std::set<std::pair<std::int64_t, std::string>> kept;
    for (const Node& node : function.nodes) {
      if (!is_recurrent(node.op)) continue;
      const StateSlot slot = state_slot(program, node);
      if (!kept.emplace(slot.layer, slot.op).second) {
        fail(node, "layer " + std::to_string(slot.layer) + " has its " + slot.op + " state already");
      }
      if (slots.try_emplace({slot.layer, slot.op}, slot).first->second != slot) {
        fail(node, "another function keeps a different state in layer " + std::to_string(slot.layer));
      }
    }
  }
  const auto declared = std::views::values(slots);
  if (!std::ranges::equal(declared, program.state_slots)) {
    broken("the state slots are not those of the recurrent nodes");
  }
}

}  // namespace

bool is_name(std::string_view name) { return !name.empty() && name.size() <= kMaxNameBytes && is_printable(name); }

bool is_source(std::string_view source) { return source.size() <= kMaxNameBytes && is_printable(source); }

std::string value_problem(const Value& value) {
  if (!is_name(value.name)) return "a value's name is empty, too long or has control characters";
  if (value.shape.empty() || value.shape.size() > 4)
    return value.name + " has rank " + std::to_string(value.shape.size());
  for (std::size_t i = 0; i < value.shape.size(); ++i) {
    const std::int64_t size = value.shape[i].size;
    const bool run_time = size == Dim::kTokens || size == Dim::kOutputs;
    const bool constant = size >= 1 && size <= kMaxDim;
    if (!constant && !(run_time && i == 0 && value.kind != ValueKind::kWeight)) {
      return value.name + " has shape " + to_string(value.shape);
    }
  }
  const Format* format = find_format(static_cast<std::uint32_t>(value.format));
  if (value.kind == ValueKind::kWeight) {
    if (format == nullptr || format->dequantize == nullptr) {
      return "weight " + value.name + " has format " + (format == nullptr ? "unknown" : std::string(format->name)) +
             ", which no weight can have";
    }
    std::int64_t elements = 1;
    for (const Dim dim : value.shape) {
      if (dim.size > kMaxElements / elements) {
        return "weight " + value.name + " has shape " + to_string(value.shape) + ", which is too large";
      }
      elements *= dim.size;
    }
    if (value.shape.size() > 2 &&
        (value.shape[0].size > kMaxMatrices || value.shape[1].size > kMaxDim / value.shape[0].size)) {
      return "weight " + value.name + " has shape " + to_string(value.shape) + ", which is too large";
    }
    if (value.shape.back().size % format->block_size != 0) {
      return "weight " + value.name + " has rows of " + std::to_string(value.shape.back().size) + " elements, " +
             std::string(format->name) + " needs multiples of " + std::to_string(format->block_size);
    }
  }
  return "";
}

void validate(const Program& program) {
  values_are_sound(program);
  names_are_unique(program);
  for (const Function& function : program.functions) operands_come_first(program, function);
  results_have_one_node(program);
  for (const Function& function : program.functions) nodes_fit_the_op_table(program, function);
  for (const Function& function : program.functions) experts_come_from_a_route(program, function);
  for (const Function& function : program.functions) ends_of_a_chain_are_single(function);
  slots_fit_the_attention_nodes(program);
  slots_fit_the_recurrent_nodes(program);
}

}  // namespace sterna
