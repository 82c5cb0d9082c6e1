#include "program/op_table.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "program/shape_rules.h"

namespace sterna {

namespace {

using enum RoleKind;
using enum RoleCount;
using enum AttributeNeed;

const std::vector<std::string_view> kActivationRules = {"auto", "int8_per_token"};
const std::vector<std::string_view> kActivations = {"silu",  "gelu",    "gelu_tanh", "relu",
                                                    "relu2", "sigmoid", "tanh",      "softplus"};
const std::vector<std::string_view> kRouteScores = {"softmax", "sigmoid"};
const std::vector<std::string_view> kGroupScores = {"best", "two_best"};
const std::vector<std::string_view> kPoolings = {"mean", "cls", "last"};
const std::vector<std::string_view> kRopeStyles = {"halves", "interleaved"};
const std::vector<std::string_view> kRopeScalings = {"none", "linear", "yarn", "longrope"};

// Gated activations: those of one operand, and those that change gate and up.
std::vector<std::string_view> glu_kinds() {
  std::vector<std::string_view> kinds = kActivations;
  kinds.push_back("clamped_swiglu");
  return kinds;
}

// The attributes of rope, plain for the op itself and as "rope.theta" ... for attention with rope folded in. The
// strings are literals so that the table may hold views.
std::vector<AttributeSpec> rope_attributes() {
  return {
      {"theta", kRequired, 0.0, {}, {}},
      {"rotary_dim", kRequired, std::int64_t{0}, {}, {}},
      {"style", kDefault, std::string("halves"), kRopeStyles, {}},
      {"scaling", kDefault, std::string("none"), kRopeScalings, {}},
      {"factor", kDefault, 1.0, {}, {}},
      {"original_context", kDefault, std::int64_t{0}, {}, {}},
      {"beta_fast", kDefault, 32.0, {}, {}},
      {"beta_slow", kDefault, 1.0, {}, {}},
      {"truncate", kDefault, true, {}, {}},
      {"attention_factor", kDefault, 1.0, {}, {}},
  };
}

std::vector<AttributeSpec> attention_attributes() {
  std::vector<AttributeSpec> attributes = {
      {"layer", kRequired, std::int64_t{0}, {}, {}},
      {"scale", kRequired, 0.0, {}, {}},
      {"window", kDefault, std::int64_t{0}, {}, {}},
      {"chunk", kDefault, std::int64_t{0}, {}, {}},
      {"causal", kDefault, true, {}, {}},
      {"softcap", kDefault, 0.0, {}, {}},
      {"max_alibi_bias", kDefault, 0.0, {}, {}},
      {"latent", kDefault, std::int64_t{0}, {}, {}},
      {"temperature.scale", kDefault, 0.0, {}, {}},
      {"temperature.length", kDefault, std::int64_t{0}, {}, {}},
      {"temperature.offset", kDefault, std::int64_t{0}, {}, {}},
      {"eps", kRequired, 0.0, {}, "q_norm"},
      {"max_distance", kRequired, std::int64_t{0}, {}, "relative_bias"},
  };
  static constexpr std::string_view kPrefixed[] = {"rope.theta",           "rope.rotary_dim", "rope.style",
                                                   "rope.scaling",         "rope.factor",     "rope.original_context",
                                                   "rope.beta_fast",       "rope.beta_slow",  "rope.truncate",
                                                   "rope.attention_factor"};
  std::vector<AttributeSpec> rope = rope_attributes();
  for (std::size_t i = 0; i < rope.size(); ++i) {
    rope[i].name = kPrefixed[i];
    rope[i].role = "positions";
    attributes.push_back(rope[i]);
  }
  return attributes;
}

std::vector<OpSpec> make_table() {
  const AttributeSpec rule = {"activation", kDefault, std::string("auto"), kActivationRules, {}};
  const AttributeSpec folded_eps = {"eps", kRequired, 0.0, {}, "norm"};
  return {
      {"embed", {{"tokens", kInput, kOne}, {"w", kWeight, kOne}}, {}, embed_shapes},
      {"linear",
       {{"x", kResult, kOne},
        {"w", kWeight, kOneOrMore},
        {"bias", kWeight, kZeroOrMore},
        {"norm", kWeight, kOptional},
        {"residual", kResult, kOptional}},
       {rule, folded_eps, {"glu", kAbsent, std::string(), glu_kinds(), {}}},
       linear_shapes},
      {"head_linear", {{"x", kResult, kOne}, {"w", kWeight, kOne}}, {rule}, head_linear_shapes},
      {"unembed",
       {{"x", kResult, kOne}, {"w", kWeight, kOne}, {"bias", kWeight, kOptional}, {"norm", kWeight, kOptional}},
       {rule, folded_eps},
       unembed_shapes},
      {"rms_norm",
       {{"x", kResult, kOne}, {"w", kWeight, kOptional}, {"residual", kResult, kOptional}},
       {{"eps", kRequired, 0.0, {}, {}}},
       rms_norm_shapes},
      {"layer_norm",
       {{"x", kResult, kOne}, {"w", kWeight, kOptional}, {"bias", kWeight, kOptional}},
       {{"eps", kRequired, 0.0, {}, {}}},
       layer_norm_shapes},
      {"rope",
       {{"x", kResult, kOne},
        {"positions", kInput, kOne},
        {"factors", kWeight, kOptional},
        {"long_factors", kWeight, kOptional}},
       rope_attributes(),
       rope_shapes},
      {"attention",
       {{"q", kResult, kOne},
        {"k", kResult, kOptional},
        {"v", kResult, kOptional},
        {"sinks", kWeight, kOptional},
        {"relative_bias", kWeight, kOptional},
        {"q_norm", kWeight, kOptional},
        {"k_norm", kWeight, kOptional},
        {"positions", kInput, kOptional},
        {"factors", kWeight, kOptional},
        {"long_factors", kWeight, kOptional}},
       attention_attributes(),
       attention_shapes},
      {"lora",
       {{"x", kResult, kOne}, {"y", kResult, kOne}, {"a", kFloats, kOne}, {"b", kFloatColumns, kOne}},
       {{"adapter", kRequired, std::int64_t{0}, {}, {}}, {"factor", kRequired, 0.0, {}, {}}},
       lora_shapes},
      {"store_kv",
       {{"k", kResult, kOne}, {"v", kResult, kOne}},
       {{"layer", kRequired, std::int64_t{0}, {}, {}}},
       store_kv_shapes},
      {"glu",
       {{"gate", kResult, kOne}, {"up", kResult, kOne}},
       {{"activation", kDefault, std::string("silu"), glu_kinds(), {}}},
       glu_shapes},
      {"route",
       {{"x", kResult, kOne}, {"bias", kFloats, kOptional}},
       {{"used", kRequired, std::int64_t{0}, {}, {}},
        {"scores", kDefault, std::string("softmax"), kRouteScores, {}},
        {"normalize", kDefault, true, {}, {}},
        {"scale", kDefault, 1.0, {}, {}},
        {"groups", kDefault, std::int64_t{1}, {}, {}},
        {"groups_used", kDefault, std::int64_t{1}, {}, {}},
        {"group_scores", kDefault, std::string("best"), kGroupScores, {}}},
       route_shapes},
      {"expert_glu",
       {{"x", kResult, kOne},
        {"experts", kResult, kOne},
        {"weights", kResult, kOne},
        {"gate", kWeight, kOne},
        {"up", kWeight, kOne},
        {"down", kWeight, kOne},
        {"gate_bias", kFloats, kOptional},
        {"up_bias", kFloats, kOptional},
        {"down_bias", kFloats, kOptional},
        {"residual", kResult, kOptional}},
       {rule, {"glu", kDefault, std::string("silu"), glu_kinds(), {}}, {"weigh_input", kDefault, false, {}, {}}},
       expert_glu_shapes},
      {"short_conv",
       {{"x", kResult, kOne}, {"w", kFloats, kOne}, {"bias", kWeight, kOptional}},
       {{"layer", kRequired, std::int64_t{0}, {}, {}}},
       short_conv_shapes},
      {"ssm_scan",
       {{"x", kResult, kOne},
        {"dt", kResult, kOne},
        {"b", kResult, kOne},
        {"c", kResult, kOne},
        {"a", kFloats, kOne},
        {"d", kFloats, kOne}},
       {{"layer", kRequired, std::int64_t{0}, {}, {}}},
       ssm_scan_shapes},
      {"delta_rule",
       {{"q", kResult, kOne},
        {"k", kResult, kOne},
        {"v", kResult, kOne},
        {"g", kResult, kOne},
        {"beta", kResult, kOne}},
       {{"layer", kRequired, std::int64_t{0}, {}, {}}},
       delta_rule_shapes},
      {"activation", {{"x", kResult, kOne}}, {{"kind", kRequired, std::string(), kActivations, {}}}, same_shapes},
      {"add", {{"a", kResult, kOne}, {"b", kAny, kOne}}, {}, binary_shapes},
      {"mul", {{"a", kResult, kOne}, {"b", kAny, kOne}}, {}, binary_shapes},
      {"scale", {{"x", kResult, kOne}}, {{"factor", kRequired, 0.0, {}, {}}}, same_shapes},
      {"clamp", {{"x", kResult, kOne}}, {{"limit", kRequired, 0.0, {}, {}}}, clamp_shapes},
      {"reshape", {{"x", kResult, kOne}}, {{"dims", kRequired, std::string(), {}, {}}}, reshape_shapes},
      {"split", {{"x", kResult, kOne}}, {{"sizes", kRequired, std::string(), {}, {}}}, split_shapes},
      {"concat", {{"x", kResult, kOneOrMore}}, {}, concat_shapes},
      {"take_rows", {{"x", kResult, kOne}}, {}, take_rows_shapes},
      {"send", {{"x", kResult, kOneOrMore}}, {}, send_shapes},
      {"receive", {}, {{"shapes", kRequired, std::string(), {}, {}}}, receive_shapes},
      {"pool", {{"x", kResult, kOne}}, {{"kind", kRequired, std::string(), kPoolings, {}}}, pool_shapes},
  };
}

bool kind_fits(RoleKind wanted, ValueKind kind) {
  switch (wanted) {
    case kResult:
      return kind == ValueKind::kNode;
    case kWeight:
    case kFloats:
    case kFloatColumns:
      return kind == ValueKind::kWeight;
    case kInput:
      return kind == ValueKind::kInput;
    case kAny:
      return kind != ValueKind::kInput;
  }
  return false;
}

const char* kind_name(RoleKind kind) {
  switch (kind) {
    case kResult:
      return "the result of a node";
    case kWeight:
    case kFloats:
    case kFloatColumns:
      return "a weight";
    case kInput:
      return "an input of the batch";
    case kAny:
      return "a result or a weight";
  }
  return "";
}

void check_roles(const Program& program, const OpSpec& op, const Node& node) {
  for (const Operand& operand : node.inputs) {
    const auto role = std::ranges::find(op.roles, operand.role, &RoleSpec::name);
    if (role == op.roles.end()) fail(node, "has no role " + operand.role);
    if (operand.value < 0 || static_cast<std::size_t>(operand.value) >= program.values.size()) {
      fail(node, operand.role + " is not a value of the program");
    }
    const Value& value = program.value(operand.value);
    if (!kind_fits(role->kind, value.kind)) {
      fail(node, operand.role + " must be " + kind_name(role->kind) + ", " + value.name + " is not");
    }
  }
  for (const RoleSpec& role : op.roles) {
    const auto count = std::ranges::count(node.inputs, role.name, &Operand::role);
    const bool needed = role.count == kOne || role.count == kOneOrMore;
    const bool many = role.count == kOneOrMore || role.count == kZeroOrMore;
    if (needed && count == 0) fail(node, "needs " + std::string(role.name));
    if (!many && count > 1) fail(node, "takes one " + std::string(role.name) + ", not " + std::to_string(count));
  }
}

const char* type_name(const Attribute& value) {
  static constexpr const char* kNames[] = {"true or false", "an integer", "a number", "a string"};
  return kNames[value.index()];
}

void check_attributes(const OpSpec& op, const Node& node) {
  for (const auto& [name, value] : node.attributes) {
    const AttributeSpec* spec = find_attribute(op, name);
    if (spec == nullptr) fail(node, "has no attribute " + name);
    if (value.index() != spec->value.index()) fail(node, name + " must be " + type_name(spec->value));
    if (!spec->role.empty() && node.input(spec->role) == kNoValue) {
      fail(node, name + " without " + std::string(spec->role));
    }
    if (const double* number = std::get_if<double>(&value); number != nullptr && !std::isfinite(*number)) {
      fail(node, name + " is not finite");
    }
    if (const std::string* text = std::get_if<std::string>(&value); text != nullptr && !spec->choices.empty()) {
      if (std::ranges::find(spec->choices, *text) == spec->choices.end()) {
        std::string choices;
        for (const std::string_view choice : spec->choices)
          choices += (choices.empty() ? "" : ", ") + std::string(choice);
        fail(node, name + " is \"" + *text + "\", must be one of " + choices);
      }
    }
  }
  for (const AttributeSpec& spec : op.attributes) {
    const bool belongs = spec.role.empty() || node.input(spec.role) != kNoValue;
    if (spec.need != kAbsent && belongs && !node.has(spec.name)) fail(node, "needs " + std::string(spec.name));
  }
}

}  // namespace

void fail(const Node& node, const std::string& problem) {
  throw ArgumentError(node.op + " " + node.name + ": " + problem +
                      (node.source.empty() ? "" : " (" + node.source + ")"));
}

std::span<const OpSpec> op_table() {
  static const std::vector<OpSpec> table = make_table();
  return table;
}

const OpSpec* find_op(std::string_view name) {
  const auto found = std::ranges::find(op_table(), name, &OpSpec::name);
  return found == op_table().end() ? nullptr : &*found;
}

const AttributeSpec* find_attribute(const OpSpec& op, std::string_view name) {
  const auto found = std::ranges::find(op.attributes, name, &AttributeSpec::name);
  return found == op.attributes.end() ? nullptr : &*found;
}

std::vector<Shape> infer_shapes(const Program& program, const Node& node) {
  const OpSpec* op = find_op(node.op);
  if (op == nullptr) fail(node, "there is no such op");
  check_roles(program, *op, node);
  check_attributes(*op, node);
  std::vector<Shape> shapes = op->shapes(program, node);
  for (const Shape& shape : shapes) {
    std::int64_t row = 1;
    for (const Dim dim : shape) {
      if (!dim.is_constant()) continue;
      if (dim.size > kMaxDim / row) fail(node, "result of shape " + to_string(shape) + " is too large");
      row *= dim.size;
    }
  }
  return shapes;
}

void complete_attributes(Node& node) {
  const OpSpec* op = find_op(node.op);
  if (op == nullptr) return;
  for (const AttributeSpec& spec : op->attributes) {
    const auto found = node.attributes.find(spec.name);
    if (found == node.attributes.end()) {
      const bool belongs = spec.role.empty() || node.input(spec.role) != kNoValue;
      if (spec.need == kDefault && belongs) node.attributes.emplace(spec.name, spec.value);
    } else if (std::holds_alternative<double>(spec.value)) {
      if (const auto* integer = std::get_if<std::int64_t>(&found->second))
        found->second = static_cast<double>(*integer);
    }
  }
}

}  // namespace sterna
