#include "cpu/lower_ops.h"

#include <algorithm>

#include "base/error.h"

namespace sterna::cpu {
namespace {

[[noreturn]] void unsupported(const Node& node, const std::string& problem) {
  throw UnsupportedModelError(node.op + " " + node.name + ": " + problem + " (" + node.source + ")");
}

void lower_embed(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<EmbedStep>();
  step.w = &lowering.matrix(node.input("w"));
  step.ids = embedded_ids(lowering.program(), node);
  step.is_first = is_first_embedding(lowering.program(), node);
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_embed, &step);
}

void lower_rms_norm(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<NormStep>();
  const ValueId x = node.input("x");
  const std::vector<float>* weight = lowering.optional_vector(node, "w");
  step.weight = weight == nullptr ? nullptr : weight->data();
  step.n = lowering.program().value(x).shape.back().size;
  step.heads = lowering.row_size(x) / step.n;
  step.eps = static_cast<float>(node.number("eps"));
  lowering.bind(step.x, x);
  if (const ValueId residual = node.input("residual"); residual != kNoValue) lowering.bind(step.residual, residual);
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_norm, &step);
}

void lower_layer_norm(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<LayerNormStep>();
  const ValueId x = node.input("x");
  const std::vector<float>* weight = lowering.optional_vector(node, "w");
  const std::vector<float>* bias = lowering.optional_vector(node, "bias");
  step.weight = weight == nullptr ? nullptr : weight->data();
  step.bias = bias == nullptr ? nullptr : bias->data();
  step.n = lowering.program().value(x).shape.back().size;
  step.heads = lowering.row_size(x) / step.n;
  step.head_step = weight != nullptr && static_cast<std::int64_t>(weight->size()) != step.n ? step.n : 0;
  step.eps = static_cast<float>(node.number("eps"));
  lowering.bind(step.x, x);
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_layer_norm, &step);
}

void lower_binary(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<BinaryStep>();
  step.kind = node.op == "add" ? BinaryKind::kAdd : BinaryKind::kMul;
  const ValueId a = node.input("a");
  const ValueId b = node.input("b");
  step.n = lowering.row_size(a);
  lowering.bind(step.a, a);
  if (lowering.program().value(b).kind == ValueKind::kWeight) {
    const std::vector<float>& weight = *lowering.optional_vector(node, "b");
    step.weight = weight.data();
    step.period = static_cast<std::int64_t>(weight.size());
  } else {
    step.weight = nullptr;
    step.period = lowering.row_size(b);
    lowering.bind(step.b, b);
  }
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_binary, &step);
}

void lower_lora(Lowering& lowering, const Node& node) {
  const ValueId y = node.input("y");
  // The result takes the place of y, which nobody else may need.
  for (const Function& function : lowering.program().functions) {
    std::ptrdiff_t readers = std::ranges::count(function.outputs, y);
    for (const Node& other : function.nodes) {
      readers += std::ranges::count(other.inputs, y, &Operand::value);
      const bool is_view = other.op == "reshape" || other.op == "split" || other.op == "store_kv";
      if (is_view && std::ranges::count(other.outputs, y) > 0) unsupported(node, "y is a view of what others read");
    }
    if (readers > 1) unsupported(node, "y is read by others too");
  }
  auto& step = lowering.make<LoraStep>();
  step.a = lowering.optional_vector(node, "a")->data();
  step.b = lowering.optional_vector(node, "b")->data();
  step.k = lowering.row_size(node.input("x"));
  step.n = lowering.row_size(y);
  step.rank = lowering.program().value(node.input("a")).shape[0].size;
  step.adapter = static_cast<std::int32_t>(node.integer("adapter"));
  step.factor = static_cast<float>(node.number("factor"));
  lowering.need_scratch(step.rank);
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, y);
  lowering.alias(node.outputs[0], lowering.place_of(y));
  lowering.add(run_lora, &step);
}

void lower_scale_or_clamp(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<ScaleStep>();
  const bool clamps = node.op == "clamp";
  step.n = lowering.row_size(node.input("x"));
  step.operand = static_cast<float>(node.number(clamps ? "limit" : "factor"));
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(clamps ? run_clamp : run_scale, &step);
}

void lower_activation(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<ActivationStep>();
  step.n = lowering.row_size(node.input("x"));
  step.kind = activation_kind(node, "kind");
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_activation, &step);
}

void lower_glu(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<GluStep>();
  step.n = lowering.row_size(node.input("gate"));
  step.kind = activation_kind(node, "activation");
  lowering.bind(step.gate, node.input("gate"));
  lowering.bind(step.up, node.input("up"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_glu, &step);
}

void lower_reshape(Lowering& lowering, const Node& node) {
  lowering.alias(node.outputs[0], lowering.place_of(node.input("x")));
}

/// Copies heads (or the one part of a row of rank 2) between places, `from` and `to` being parts of their heads.
void copy_heads(Lowering& lowering, const Place& from, const Shape& from_shape, const Place& to,
                const Shape& to_shape) {
  auto& step = lowering.make<CopyStep>();
  step.n = std::min(from_shape.back().size, to_shape.back().size);
  if (from_shape.size() == 3) step.heads = from_shape[1].size;
  step.x_apart = from_shape.back().size;
  step.y_apart = to_shape.back().size;
  lowering.bind(step.x, from);
  lowering.bind(step.y, to);
  lowering.add(run_copy, &step);
}

/// Parts of the last dimension: views of a matrix's columns, copies of parts of heads.
void lower_split(Lowering& lowering, const Node& node) {
  const ValueId x = node.input("x");
  const Shape& shape = lowering.program().value(x).shape;
  Place part = lowering.place_of(x);
  for (const ValueId output : node.outputs) {
    const Shape& part_shape = lowering.program().value(output).shape;
    if (shape.size() == 2) {
      lowering.alias(output, part);
    } else {
      copy_heads(lowering, part, shape, lowering.define(output), part_shape);
    }
    part.offset += part_shape.back().size;
  }
}

void lower_concat(Lowering& lowering, const Node& node) {
  const Shape& shape = lowering.program().value(node.outputs[0]).shape;
  Place target = lowering.define(node.outputs[0]);
  for (const ValueId part : node.input_list("x")) {
    const Shape& part_shape = lowering.program().value(part).shape;
    copy_heads(lowering, lowering.place_of(part), part_shape, target, shape);
    target.offset += part_shape.back().size;
  }
}

void lower_take_rows(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<CopyStep>();
  step.n = lowering.row_size(node.input("x"));
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_take_rows, &step);
}

void lower_pool(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<PoolStep>();
  step.n = lowering.row_size(node.input("x"));
  const std::string& kind = node.text("kind");
  step.kind = kind == "mean" ? PoolKind::kMean : kind == "cls" ? PoolKind::kFirst : PoolKind::kLast;
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_pool, &step);
}

struct Entry {
  std::string_view op;
  LowerFunction lower;
};

constexpr Entry kLowerings[] = {
    {"embed", lower_embed},
    {"linear", lower_linear},
    {"lora", lower_lora},
    {"head_linear", lower_head_linear},
    {"unembed", lower_unembed},
    {"rms_norm", lower_rms_norm},
    {"layer_norm", lower_layer_norm},
    {"rope", lower_rope},
    {"attention", lower_attention},
    {"glu", lower_glu},
    {"route", lower_route},
    {"expert_glu", lower_expert_glu},
    {"add", lower_binary},
    {"mul", lower_binary},
    {"activation", lower_activation},
    {"scale", lower_scale_or_clamp},
    {"clamp", lower_scale_or_clamp},
    {"reshape", lower_reshape},
    {"split", lower_split},
    {"concat", lower_concat},
    {"store_kv", lower_store_kv},
    {"take_rows", lower_take_rows},
    {"pool", lower_pool},
    {"short_conv", lower_short_conv},
    {"ssm_scan", lower_ssm_scan},
    {"delta_rule", lower_delta_rule},
};

}  // namespace

LowerFunction find_lowering(std::string_view op) {
  for (const Entry& entry : kLowerings) {
    if (entry.op == op) return entry.lower;
  }
  return nullptr;
}

EmbeddedIds embedded_ids(const Program& program, const Node& embed) {
  const std::string& name = program.value(embed.input("tokens")).name;
  if (name == "positions") return EmbeddedIds::kPositions;
  return name == "token_types" ? EmbeddedIds::kTokenTypes : EmbeddedIds::kTokens;
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
  unsupported(node, "the CPU backend has no activation \"" + name + "\"");
}

}  // namespace sterna::cpu
