/// Shape rules of rope, attention and what attention keeps.
#include <algorithm>
#include <string>

#include "program/op_table.h"
#include "program/shape_checks.h"
#include "program/shape_rules.h"
#include "program/slots.h"

namespace sterna {

namespace {

void check_rope(const Program& program, const Node& node, const std::string& prefix, std::int64_t head_dim) {
  check_positive(node, prefix + "theta");
  check_positive(node, prefix + "factor");
  check_positive(node, prefix + "beta_fast");
  check_positive(node, prefix + "beta_slow");
  check_positive(node, prefix + "attention_factor");
  const std::int64_t rotary_dim = node.integer(prefix + "rotary_dim");
  if (rotary_dim < 2 || rotary_dim > head_dim || rotary_dim % 2 != 0) {
    fail(node, "rotary_dim is " + std::to_string(rotary_dim) + ", must be even and from 2 to head_dim " +
                   std::to_string(head_dim));
  }
  const std::string& scaling = node.text(prefix + "scaling");
  if ((scaling == "yarn" || scaling == "longrope") && node.integer(prefix + "original_context") < 1) {
    fail(node, scaling + " needs original_context above 0");
  }
  if (scaling == "longrope" && (node.input("factors") == kNoValue || node.input("long_factors") == kNoValue)) {
    fail(node, "longrope needs factors and long_factors");
  }
  if (scaling != "longrope" && node.input("long_factors") != kNoValue) fail(node, "long_factors without longrope");
  check_optional(program, node, "factors", {{rotary_dim / 2}});
  check_optional(program, node, "long_factors", {{rotary_dim / 2}});
  const Value& positions = operand(program, node, "positions");
  if (positions.shape != Shape{{Dim::kTokens}}) fail(node, "positions must have shape [T]");
}

/// The keys and values that a node stores.
KvSlot stored_slot(const Program& program, const Node& node) {
  const Shape& k = tokens_of(program, node, "k", 3);
  const Shape& v = tokens_of(program, node, "v", 3);
  if (k[1] != v[1]) {
    fail(node, "k has " + std::to_string(k[1].size) + " heads, v " + std::to_string(v[1].size));
  }
  check_layer(node);
  return kv_slot(program, node);
}

/// Where an attention node finds its keys and values: its own, or those that an earlier node of that layer has stored.
KvSlot attended_slot(const Program& program, const Node& node) {
  check_layer(node);
  const std::int64_t layer = node.integer("layer");
  const std::int64_t latent = node.integer("latent");
  if (latent != 0) {
    if (node.input("k") == kNoValue || node.input("v") != kNoValue) fail(node, "latent needs k and takes no v");
    const Shape& k = tokens_of(program, node, "k", 3);
    if (latent < 0 || latent > k[2].size) {
      fail(node, "latent is " + std::to_string(latent) + ", must be from 1 to head_dim " + std::to_string(k[2].size));
    }
    return kv_slot(program, node);
  }
  if ((node.input("k") == kNoValue) != (node.input("v") == kNoValue)) fail(node, "k and v come together");
  if (node.input("k") != kNoValue) return stored_slot(program, node);
  for (const char* role : {"q_norm", "positions"}) {
    if (node.input(role) != kNoValue) fail(node, std::string(role) + " without k and v");
  }
  const auto slot = std::ranges::find(program.kv_slots, layer, &KvSlot::layer);
  if (slot == program.kv_slots.end()) fail(node, "layer " + std::to_string(layer) + " has no KV slot to share");
  return *slot;
}

void check_attention_options(const Program& program, const Node& node, std::int64_t heads) {
  for (const char* name : {"window", "chunk"}) {
    if (node.integer(name) < 0) fail(node, std::string(name) + " is " + std::to_string(node.integer(name)));
  }
  for (const char* name : {"temperature.length", "temperature.offset"}) check_count(node, name, kMaxDim);
  for (const char* name : {"softcap", "max_alibi_bias", "temperature.scale"}) {
    if (node.number(name) < 0) fail(node, std::string(name) + " is " + std::to_string(node.number(name)));
  }
  if (!node.flag("causal") && node.integer("chunk") > 0) fail(node, "has chunks, which need causal attention");
  if (node.integer("window") > 0 && node.integer("chunk") > 0) fail(node, "has a window and chunks, can have one");
  if (node.number("temperature.scale") > 0 && node.integer("temperature.length") < 1) {
    fail(node, "temperature.scale needs temperature.length above 0");
  }
  check_positive(node, "scale");
  check_optional(program, node, "sinks", {{heads}});
  if (node.input("relative_bias") == kNoValue) return;
  const Value& bias = operand(program, node, "relative_bias");
  const Shape& buckets = matrix(node, bias);
  // At least one bucket for single distances and one beyond them, on each side.
  const std::int64_t fewest = node.flag("causal") ? 2 : 4;
  if (buckets[1].size != heads || buckets[0].size < fewest || buckets[0].size % fewest != 0) {
    fail(node, "relative_bias " + bias.name + " has shape " + to_string(buckets) + ", expected a multiple of " +
                   std::to_string(fewest) + " buckets for each of " + std::to_string(heads) + " heads");
  }
  const std::int64_t distance = node.integer("max_distance");
  if (distance <= buckets[0].size / fewest || distance > kMaxRelativeDistance) {
    fail(node, "max_distance is " + std::to_string(distance) + ", must be above " +
                   std::to_string(buckets[0].size / fewest) + " and at most " + std::to_string(kMaxRelativeDistance));
  }
}

}  // namespace

std::vector<Shape> rope_shapes(const Program& program, const Node& node) {
  const Shape& x = tokens_of(program, node, "x", 3);
  check_rope(program, node, "", x[2].size);
  return {x};
}

std::vector<Shape> attention_shapes(const Program& program, const Node& node) {
  const Shape& q = tokens_of(program, node, "q", 3);
  const KvSlot slot = attended_slot(program, node);
  if (q[2].size != slot.head_dim) {
    fail(node, "q has head_dim " + std::to_string(q[2].size) + ", k " + std::to_string(slot.head_dim));
  }
  if (q[1].size % slot.num_kv_heads != 0) {
    fail(node, std::to_string(q[1].size) + " query heads are not a multiple of " + std::to_string(slot.num_kv_heads) +
                   " key and value heads");
  }
  check_attention_options(program, node, q[1].size);
  if ((node.input("q_norm") == kNoValue) != (node.input("k_norm") == kNoValue)) {
    fail(node, "q_norm and k_norm come together");
  }
  check_optional(program, node, "q_norm", {q[2]});
  check_optional(program, node, "k_norm", {q[2]});
  if (node.has("eps")) check_positive(node, "eps");
  if (node.input("positions") != kNoValue) {
    check_rope(program, node, "rope.", q[2].size);
  } else {
    for (const char* role : {"factors", "long_factors"}) {
      if (node.input(role) != kNoValue) fail(node, std::string(role) + " without positions");
    }
  }
  return {{q[0], {q[1].size * slot.value_head_dim}}};
}

std::vector<Shape> store_kv_shapes(const Program& program, const Node& node) {
  stored_slot(program, node);
  return {operand(program, node, "k").shape};
}

}  // namespace sterna
