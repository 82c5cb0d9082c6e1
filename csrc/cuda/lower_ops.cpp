/// Lowers the row-wise ops and views, and knows which function lowers which op.
#include <algorithm>

#include "cuda/lowering.h"
#include "plan/head_copies.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

void lower_embed(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<EmbedArguments>();
  a.w = lowering.matrices(node.input("w")).first;
  a.ids = embedded_ids(lowering.program(), node);
  a.is_first = is_first_embedding(lowering.program(), node);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kEmbed, &a);
}

void lower_rms_norm(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<NormArguments>();
  const ValueId x = node.input("x");
  a.weight = lowering.vector(node, "w");
  a.n = lowering.program().value(x).shape.back().size;
  a.heads = lowering.row_size(x) / a.n;
  a.eps = static_cast<float>(node.number("eps"));
  lowering.bind(a.x, x);
  if (const ValueId residual = node.input("residual"); residual != kNoValue) lowering.bind(a.residual, residual);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kNorm, &a);
}

void lower_layer_norm(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<LayerNormArguments>();
  const ValueId x = node.input("x");
  const ValueId w = node.input("w");
  a.weight = lowering.vector(node, "w");
  a.bias = lowering.vector(node, "bias");
  a.n = lowering.program().value(x).shape.back().size;
  a.heads = lowering.row_size(x) / a.n;
  a.head_step = w != kNoValue && lowering.vector_size(w) != a.n ? a.n : 0;
  a.eps = static_cast<float>(node.number("eps"));
  lowering.bind(a.x, x);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kLayerNorm, &a);
}

void lower_binary(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<BinaryArguments>();
  a.multiplies = node.op == "mul";
  const ValueId b = node.input("b");
  a.n = lowering.row_size(node.input("a"));
  lowering.bind(a.a, node.input("a"));
  if (lowering.program().value(b).kind == ValueKind::kWeight) {
    a.weight = lowering.vector(b);
    a.period = lowering.vector_size(b);
  } else {
    a.period = lowering.row_size(b);
    lowering.bind(a.b, b);
  }
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kBinary, &a);
}

void lower_lora(Lowering& lowering, const Node& node) {
  const ValueId y = node.input("y");
  check_lora_result(lowering.program(), node);
  auto& a = lowering.make<LoraArguments>();
  a.a = lowering.vector(node, "a");
  a.b = lowering.vector(node, "b");
  a.k = lowering.row_size(node.input("x"));
  a.n = lowering.row_size(y);
  a.rank = lowering.program().value(node.input("a")).shape[0].size;
  a.adapter = static_cast<std::int32_t>(node.integer("adapter"));
  a.factor = static_cast<float>(node.number("factor"));
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, y);
  lowering.alias(node.outputs[0], lowering.place_of(y));
  lowering.bind(a.products, lowering.temporary(lowering.max_rows(lowering.place_of(y).outputs) * a.rank * 4));
  lowering.add(Kernel::kLora, &a);
}

void lower_scale_or_clamp(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<ScaleArguments>();
  const bool clamps = node.op == "clamp";
  a.n = lowering.row_size(node.input("x"));
  a.operand = static_cast<float>(node.number(clamps ? "limit" : "factor"));
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(clamps ? Kernel::kClamp : Kernel::kScale, &a);
}

void lower_activation(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<ActivationArguments>();
  a.n = lowering.row_size(node.input("x"));
  a.kind = activation_kind(node, "kind");
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kActivation, &a);
}

void lower_glu(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<GluArguments>();
  a.n = lowering.row_size(node.input("gate"));
  a.kind = activation_kind(node, "activation");
  lowering.bind(a.gate, node.input("gate"));
  lowering.bind(a.up, node.input("up"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kGlu, &a);
}

void lower_reshape(Lowering& lowering, const Node& node) {
  lowering.alias(node.outputs[0], lowering.place_of(node.input("x")));
}

void add_copy(Lowering& lowering, const HeadCopy& copy) {
  auto& a = lowering.make<CopyArguments>();
  a.n = copy.n;
  a.heads = copy.heads;
  a.x_apart = copy.from_apart;
  a.y_apart = copy.to_apart;
  lowering.bind(a.x, copy.from);
  lowering.bind(a.y, copy.to);
  lowering.add(Kernel::kCopy, &a);
}

void lower_split(Lowering& lowering, const Node& node) {
  split_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_concat(Lowering& lowering, const Node& node) {
  concat_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_take_rows(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<CopyArguments>();
  a.n = lowering.row_size(node.input("x"));
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kTakeRows, &a);
}

void lower_send(Lowering& lowering, const Node& node) {
  send_places(lowering, node, [&](const HeadCopy& copy) { add_copy(lowering, copy); });
}

void lower_receive(Lowering& lowering, const Node& node) {
  receive_parts(lowering, node, [&](const ReceivedPart& part) {
    auto& a = lowering.make<ReceiveArguments>();
    a.row_floats = part.row_floats;
    a.first = part.first;
    a.n = part.n;
    lowering.bind(a.y, lowering.define(part.value));
    lowering.add(Kernel::kReceive, &a);
  });
}

void lower_pool(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<PoolArguments>();
  a.n = lowering.row_size(node.input("x"));
  a.kind = pool_kind(node);
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kPool, &a);
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

}  // namespace sterna::cuda
