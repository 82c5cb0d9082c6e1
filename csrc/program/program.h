/// The Program: what a model file computes, as SSA values and named nodes. Traced once, compiled to a Plan, never
/// interpreted here.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "quant/format.h"

namespace sterna {

using ValueId = std::int32_t;
constexpr ValueId kNoValue = -1;

/// An extent: a constant, or one of the two run-time dimensions.
struct Dim {
  static constexpr std::int64_t kTokens = -1;   // T: rows of the batch
  static constexpr std::int64_t kOutputs = -2;  // L: rows whose logits are wanted
  std::int64_t size = 0;

  bool is_constant() const { return size >= 0; }
  bool operator==(const Dim&) const = default;
};
using Shape = std::vector<Dim>;
std::string to_string(const Shape& shape);  // "[T, 576]"

enum class ValueKind { kInput, kWeight, kNode };

/// Inputs are the arrays of a Batch ("tokens", "positions"), weights are tensors of the file; the rest are results of
/// nodes.
struct Value {
  std::string
      name;  // input or tensor name ("blk.0.attn_q"); for results the node's name (plus ".1", ".2" for further results)
  ValueKind kind = ValueKind::kNode;
  Shape shape;                       // weights: [n, k] rows first, as numpy sees them
  FormatId format = FormatId::kF32;  // weights only; results are float32, inputs int32
};

using Attribute = std::variant<bool, std::int64_t, double, std::string>;
using Attributes = std::map<std::string, Attribute, std::less<>>;

/// What a node takes: a value and the role it plays ("x", "w", "bias", "norm", "residual", ...; op_table.h lists them).
struct Operand {
  std::string role;
  ValueId value = kNoValue;
  bool operator==(const Operand&) const = default;
};

struct Node {
  std::string op;    // a name of op_table.h
  std::string name;  // unique: "layers.3/attn_q"
  std::vector<Operand> inputs;
  std::vector<ValueId> outputs;
  Attributes attributes;
  std::string source;  // "models/llama.py:27"

  /// The operand of that role, or kNoValue.
  ValueId input(std::string_view role) const;
  /// All operands of that role, in order.
  std::vector<ValueId> input_list(std::string_view role) const;
  std::int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  bool flag(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  bool has(std::string_view name) const { return attributes.find(name) != attributes.end(); }
};

/// One layer's place in the KV cache, declared by its attention node.
struct KvSlot {
  std::int64_t layer = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;        // of K
  std::int64_t value_head_dim = 0;  // of V
  bool latent = false;              // V is the beginning of K and not stored again (MLA, arXiv:2405.04434)
  bool operator==(const KvSlot&) const = default;
};

/// What a recurrent op of a layer keeps of a sequence: a matrix of floats, replaced with every token. Declared by its
/// node; a layer may have one for each such op.
struct StateSlot {
  std::int64_t layer = 0;
  std::string op;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  bool operator==(const StateSlot&) const = default;
  /// One slot for each key.
  bool comes_before(const StateSlot& other) const { return layer != other.layer ? layer < other.layer : op < other.op; }
};

/// A named entry point: "logits" (a row per token that asks for one), or "encode" (one vector per sequence).
struct Function {
  std::string name;
  std::vector<Node> nodes;  // in execution order
  std::vector<ValueId> outputs;
};

struct Program {
  std::vector<Value> values;  // indexed by ValueId
  std::vector<Function> functions;
  std::vector<KvSlot> kv_slots;        // by layer, ascending
  std::vector<StateSlot> state_slots;  // by layer, then by op

  const Value& value(ValueId id) const { return values.at(static_cast<std::size_t>(id)); }
  Function& function(std::string_view name);
  const Function& function(std::string_view name) const;
  /// The value of that kind and name, or kNoValue.
  ValueId find(ValueKind kind, std::string_view name) const;
};

}  // namespace sterna
