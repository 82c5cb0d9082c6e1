#include "program/passes/split_layers.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "program/op_table.h"
#include "program/slots.h"
#include "program/validate.h"

namespace sterna {
namespace {

constexpr std::string_view kScope = "layers.";

/// The layer in whose scope a node is, or -1.
std::int64_t layer_of(std::string_view name) {
  for (std::size_t begin = 0; begin < name.size();) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string_view scope = name.substr(begin, end - begin);
    if (end < name.size() && scope.starts_with(kScope)) {
      std::int64_t layer = -1;
      const char* const last = scope.data() + scope.size();
      const auto [next, error] = std::from_chars(scope.data() + kScope.size(), last, layer);
      if (error == std::errc() && next == last && layer >= 0 && layer < kMaxLayers) return layer;
    }
    begin = end + 1;
  }
  return -1;
}

/// Which nodes of a function the second part has. Embeddings need nothing but the batch, so that the first part can
/// make them wherever they stand.
std::vector<bool> nodes_from(const Function& function, std::int64_t first_layer) {
  std::vector<bool> second(function.nodes.size());
  bool is_behind = false;
  for (std::size_t i = 0; i < second.size(); ++i) {
    is_behind = is_behind || layer_of(function.nodes[i].name) >= first_layer;
    second[i] = is_behind && function.nodes[i].op != "embed";
  }
  return second;
}

void check_keys(const Function& function, const std::vector<bool>& second) {
  std::map<std::int64_t, bool> stored;  // by layer, whether in the second part
  for (std::size_t i = 0; i < second.size(); ++i) {
    const Node& node = function.nodes[i];
    if (node.op != "attention") continue;
    const std::int64_t layer = node.integer("layer");
    if (stores_kv(node)) {
      stored[layer] = second[i];
    } else if (const auto found = stored.find(layer); found != stored.end() && found->second != second[i]) {
      throw UnsupportedModelError("layer " + std::to_string(layer_of(node.name)) + " reads the keys of layer " +
                                  std::to_string(layer) + ": the two must be on one side of a cut (" + node.name +
                                  ", " + node.source + ")");
    }
  }
}

void check_whole_texts(const Program& program) {
  const auto refuse = [](const std::string& what) { throw UnsupportedModelError("layers cannot be divided: " + what); };
  const bool has_logits =
      std::ranges::any_of(program.functions, [](const Function& function) { return function.name == "logits"; });
  if (!has_logits) refuse("the model is an encoder");
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.op == "store_kv" || (node.op == "attention" && !node.flag("causal"))) {
        refuse(node.name + " is part of an encoder (" + node.source + ")");
      }
    }
  }
}

/// What the second part of a function reads of the first, in the order in which it is computed.
std::vector<ValueId> crossing_values(const Program& program, const Function& function,
                                     const std::vector<bool>& second) {
  std::vector<bool> is_read(program.values.size());
  for (std::size_t i = 0; i < second.size(); ++i) {
    if (!second[i]) continue;
    for (const Operand& operand : function.nodes[i].inputs) is_read[static_cast<std::size_t>(operand.value)] = true;
  }
  for (const ValueId id : function.outputs) is_read[static_cast<std::size_t>(id)] = true;
  std::vector<ValueId> crossing;
  for (std::size_t i = 0; i < second.size(); ++i) {
    if (second[i]) continue;
    for (const ValueId id : function.nodes[i].outputs) {
      if (is_read[static_cast<std::size_t>(id)]) crossing.push_back(id);
    }
  }
  return crossing;
}

/// "32;4,64": the shapes of rows.
std::string shapes_text(const Program& program, const std::vector<ValueId>& values) {
  std::string text;
  for (const ValueId id : values) {
    const Shape& shape = program.value(id).shape;
    if (!text.empty()) text += ';';
    for (std::size_t i = 1; i < shape.size(); ++i) text += (i > 1 ? "," : "") + std::to_string(shape[i].size);
  }
  return text;
}

/// One part in the making: values are copied as nodes name them.
class Part {
 public:
  explicit Part(const Program& whole) : whole_(whole), ids_(whole.values.size(), kNoValue) {}

  void begin(const std::string& name) { part_.functions.push_back({name, {}, {}}); }

  void add(Node node) {
    for (Operand& operand : node.inputs) operand.value = copied(operand.value);
    for (ValueId& id : node.outputs) id = copied(id);
    if (stores_kv(node)) {
      keep(whole_.kv_slots, part_.kv_slots, [&](const KvSlot& slot) { return slot.layer == node.integer("layer"); });
    } else if (is_recurrent(node.op)) {
      keep(whole_.state_slots, part_.state_slots,
           [&](const StateSlot& slot) { return slot.layer == node.integer("layer") && slot.op == node.op; });
    }
    part_.functions.back().nodes.push_back(std::move(node));
  }

  /// `values` come from the part before.
  void receive(const std::vector<ValueId>& values, const std::string& source) {
    Node node{"receive", end_name("receive"), {}, {}, {{"shapes", shapes_text(whole_, values)}}, source};
    for (const ValueId id : values) {
      const std::string name = node.outputs.empty() ? node.name : node.name + "." + std::to_string(node.outputs.size());
      node.outputs.push_back(new_value({name, ValueKind::kNode, whole_.value(id).shape, FormatId::kF32}));
      ids_[static_cast<std::size_t>(id)] = node.outputs.back();
    }
    part_.functions.back().nodes.push_back(std::move(node));
  }

  /// `values` go to the next part.
  void send(const std::vector<ValueId>& values, const std::string& source) {
    Node node{"send", end_name("send"), {}, {}, {}, source};
    std::int64_t floats = 0;
    for (const ValueId id : values) {
      node.inputs.push_back({"x", copied(id)});
      std::int64_t row = 1;
      for (const Dim dim : whole_.value(id).shape) row *= dim.is_constant() ? dim.size : 1;
      floats += row;
    }
    node.outputs = {new_value({node.name, ValueKind::kNode, {{Dim::kTokens}, {floats}}, FormatId::kF32})};
    part_.functions.back().outputs = node.outputs;
    part_.functions.back().nodes.push_back(std::move(node));
  }

  void set_outputs(const std::vector<ValueId>& outputs) {
    for (const ValueId id : outputs) part_.functions.back().outputs.push_back(copied(id));
  }

  Program finish() {
    std::ranges::sort(part_.kv_slots, {}, &KvSlot::layer);
    std::ranges::sort(part_.state_slots, [](const StateSlot& a, const StateSlot& b) { return a.comes_before(b); });
    validate(part_);
    return std::move(part_);
  }

 private:
  std::string end_name(const std::string& op) const {
    const std::string& function = part_.functions.back().name;
    return function == "logits" ? op : function + "/" + op;
  }

  ValueId new_value(Value value) {
    part_.values.push_back(std::move(value));
    return static_cast<ValueId>(part_.values.size() - 1);
  }

  ValueId copied(ValueId id) {
    ValueId& copy = ids_[static_cast<std::size_t>(id)];
    if (copy == kNoValue) copy = new_value(whole_.value(id));
    return copy;
  }

  /// Functions may share a slot.
  template <class Slot, class Belongs>
  static void keep(const std::vector<Slot>& from, std::vector<Slot>& to, Belongs belongs) {
    for (const Slot& slot : from) {
      if (belongs(slot) && std::ranges::find(to, slot) == to.end()) to.push_back(slot);
    }
  }

  const Program& whole_;
  Program part_;
  std::vector<ValueId> ids_;  // by value of the whole
};

}  // namespace

std::int64_t num_layers(const Program& program) {
  std::int64_t count = 0;
  if (program.functions.empty()) return count;
  for (const Node& node : program.functions.back().nodes) count = std::max(count, layer_of(node.name) + 1);
  return count;
}

std::pair<Program, Program> split_layers(const Program& program, std::int64_t first_layer) {
  check_whole_texts(program);
  if (const std::int64_t count = num_layers(program); first_layer < 1 || first_layer >= count) {
    throw ArgumentError("program: a cut before layer " + std::to_string(first_layer) + " of " + std::to_string(count));
  }
  Part first(program), second(program);
  for (const Function& function : program.functions) {
    const std::vector<bool> is_second = nodes_from(function, first_layer);
    check_keys(function, is_second);
    const std::vector<ValueId> crossing = crossing_values(program, function, is_second);
    const auto begin = std::ranges::find(is_second, true);
    const std::size_t cut = static_cast<std::size_t>(begin - is_second.begin());
    if (crossing.empty() || begin == is_second.end()) {
      throw UnsupportedModelError("layers cannot be divided: function " + function.name + " has none on both sides");
    }
    const std::string& source = function.nodes[cut].source;
    first.begin(function.name);
    second.begin(function.name);
    second.receive(crossing, source);
    for (std::size_t i = 0; i < is_second.size(); ++i) (is_second[i] ? second : first).add(function.nodes[i]);
    first.send(crossing, source);
    second.set_outputs(function.outputs);
  }
  return {first.finish(), second.finish()};
}

}  // namespace sterna
