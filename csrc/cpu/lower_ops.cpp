#include "cpu/lower_ops.h"

#include <algorithm>

#include "base/error.h"
#include "plan/head_copies.h"

namespace sterna::cpu {
namespace {

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
  check_lora_result(lowering.program(), node);
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

void add_copy(Lowering& lowering, const HeadCopy& copy) {
  auto& step = lowering.make<CopyStep>();
  step.n = copy.n;
  step.heads = copy.heads;
  step.x_apart = copy.from_apart;
  step.y_apart = copy.to_apart;
  lowering.bind(step.x, copy.from);
  lowering.bind(step.y, copy.to);
  lowering.add(run_copy, &step);
}

void lower_split(Lowering& lowering, const Node& node) {
  split_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_concat(Lowering& lowering, const Node& node) {
  concat_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_take_rows(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<CopyStep>();
  step.n = lowering.row_size(node.input("x"));
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_take_rows, &step);
}

void lower_send(Lowering& lowering, const Node& node) {
  send_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_receive(Lowering& lowering, const Node& node) {
  receive_parts(lowering, node, [&](const ReceivedPart& part) {
    auto& step = lowering.make<ReceiveStep>();
    step.row_floats = part.row_floats;
    step.first = part.first;
    step.n = part.n;
    lowering.bind(step.y, lowering.define(part.value));
    lowering.add(run_receive, &step);
  });
}

void lower_pool(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<PoolStep>();
  step.n = lowering.row_size(node.input("x"));
  step.kind = pool_kind(node);
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
    {"send", lower_send},
    {"receive", lower_receive},
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

}  // namespace sterna::cpu
