#include "plan/attention_node.h"

#include "plan/node_kinds.h"
#include "program/slots.h"

namespace sterna {
namespace {

AttentionNode::RelativeBias read_relative_bias(const Program& program, const Node& node) {
  const ValueId w = node.input("relative_bias");
  if (w == kNoValue) return {};
  const std::int64_t farthest = node.integer("max_distance");
  const char* const side = node.flag("causal") ? " before " : " around ";
  return {w, farthest, program.value(w).name + side + std::to_string(farthest)};
}

}  // namespace

AttentionNode read_attention(const Program& program, const Node& node) {
  AttentionNode read{};
  const Shape& q = program.value(node.input("q")).shape;
  read.layer = node.integer("layer");
  read.query_heads = q[1].size;
  read.head_dim = q[2].size;
  read.stores = node.input("k") != kNoValue;
  read.normed = node.input("q_norm") != kNoValue;
  read.roped = node.input("positions") != kNoValue;
  if (read.normed) read.norm_eps = static_cast<float>(node.number("eps"));
  read.scale = static_cast<float>(node.number("scale"));
  read.softcap = static_cast<float>(node.number("softcap"));
  read.window = node.integer("window");
  read.chunk = node.integer("chunk");
  read.causal = node.flag("causal");
  read.cross = cross_layers(program).contains(read.layer);
  if (!read.stores && !read.causal && !read.cross) {  // all layers write the same temporary pages
    unsupported(node, "only causal attention shares keys and values");
  }
  if (const double bias = node.number("max_alibi_bias"); bias > 0) read.slopes = alibi_slopes(read.query_heads, bias);
  read.temperature = attention_temperature(node);
  read.relative_bias = read_relative_bias(program, node);
  return read;
}

}  // namespace sterna
