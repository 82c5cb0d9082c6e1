/// Lowers rope and attention: K and V go to the cache first, then every query reads the cache only.
#include <algorithm>

#include "cuda/lowering.h"
#include "plan/node_kinds.h"
#include "program/attention_options.h"
#include "program/slots.h"

namespace sterna::cuda {
namespace {

/// Rows times spans of 256 keys that several blocks can share the work of: 512 thousand keys of one row, or 16 thousand
/// of each of 32.
constexpr std::int64_t kPartialRoom = 2048;

/// The bias of each head by distance, computed once per run for all nodes that share it.
void bind_relative_bias(Lowering& lowering, const Node& node, AttendArguments& attend) {
  const ValueId w = node.input("relative_bias");
  if (w == kNoValue) return;
  const std::int64_t farthest = node.integer("max_distance");
  const bool causal = node.flag("causal");
  const std::string key =
      lowering.program().value(w).name + (causal ? " before " : " around ") + std::to_string(farthest);
  const std::int64_t distances = 2 * farthest + 1;
  const auto [buffer, is_new] = lowering.shared_buffer(key, attend.query_heads * distances * 4);
  if (is_new) {
    auto& a = lowering.make<RelativeBiasArguments>();
    a.w = lowering.matrices(w).first;
    a.farthest = farthest;
    std::vector<std::int32_t> buckets;
    for (std::int64_t d = -farthest; d <= farthest; ++d) {
      buckets.push_back(static_cast<std::int32_t>(relative_bucket(d, causal, a.w.n, farthest)));
    }
    a.buckets = lowering.constants().add(buckets);
    lowering.bind(a.y, buffer);
    lowering.add(Kernel::kRelativeBias, &a);
  }
  lowering.bind(const_cast<float*&>(attend.relative_bias), buffer);
  attend.farthest = farthest;
}

void bind_kv(Lowering& lowering, const Node& node, StoreKvArguments& store) {
  store.layer = lowering.kv_layer(node.integer("layer"));
  lowering.bind(store.k, node.input("k"));
  if (const ValueId v = node.input("v"); v != kNoValue) lowering.bind(store.v, v);
}

/// K and V of attention to the cache; where the queries are when their norm and rope are done, too.
Place store_keys(Lowering& lowering, const Node& node, Place queries) {
  const Shape& q = lowering.program().value(node.input("q")).shape;
  auto& store = lowering.make<StoreKvArguments>();
  store.query_heads = static_cast<std::int32_t>(q[1].size);
  if (node.input("q_norm") != kNoValue) {
    store.query_transform.norm = lowering.vector(node, "q_norm");
    store.key_transform.norm = lowering.vector(node, "k_norm");
    store.query_transform.eps = store.key_transform.eps = static_cast<float>(node.number("eps"));
  }
  if (node.input("positions") != kNoValue) {
    lowering.bind_rope(store.query_transform, node, "rope.");
    lowering.bind_rope(store.key_transform, node, "rope.");
  }
  lowering.bind(store.q, queries);
  bind_kv(lowering, node, store);
  if (node.input("q_norm") != kNoValue || node.input("positions") != kNoValue) {
    queries = lowering.temporary_rows(q[1].size * q[2].size, false);
    lowering.bind(store.q_out, queries);
  }
  lowering.add(Kernel::kStoreKv, &store);
  return queries;
}

}  // namespace

void lower_rope(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<RopeArguments>();
  const ValueId x = node.input("x");
  const Shape& shape = lowering.program().value(x).shape;
  a.heads = static_cast<std::int32_t>(shape[1].size);
  a.head_dim = static_cast<std::int32_t>(shape[2].size);
  lowering.bind_rope(a.transform, node, "");
  lowering.bind(a.x, x);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kRope, &a);
}

/// The result is another name for k.
void lower_store_kv(Lowering& lowering, const Node& node) {
  auto& store = lowering.make<StoreKvArguments>();
  bind_kv(lowering, node, store);
  lowering.alias(node.outputs[0], lowering.place_of(node.input("k")));
  lowering.add(Kernel::kStoreKv, &store);
}

void lower_attention(Lowering& lowering, const Node& node) {
  const auto query_heads = lowering.program().value(node.input("q")).shape[1].size;
  Place queries = lowering.place_of(node.input("q"));
  const bool cross = cross_layers(lowering.program()).contains(node.integer("layer"));
  if (node.input("k") != kNoValue) {
    queries = store_keys(lowering, node, queries);
  } else if (!node.flag("causal") && !cross) {  // all layers write the same temporary pages
    unsupported(node, "only causal attention shares keys and values");
  }

  auto& a = lowering.make<AttendArguments>();
  a.query_heads = static_cast<std::int32_t>(query_heads);
  a.layer = lowering.kv_layer(node.integer("layer"));
  a.scale = static_cast<float>(node.number("scale"));
  a.softcap = static_cast<float>(node.number("softcap"));
  a.window = node.integer("window");
  a.chunk = node.integer("chunk");
  a.causal = node.flag("causal");
  a.cross = cross;
  bind_relative_bias(lowering, node, a);
  a.sinks = lowering.vector(node, "sinks");
  if (node.number("max_alibi_bias") > 0) {
    a.slopes = lowering.constants().add(alibi_slopes(query_heads, node.number("max_alibi_bias")));
  }
  const AttentionTemperature temperature = attention_temperature(node);
  a.temperature_scale = temperature.scale;
  a.temperature_length = temperature.length;
  a.temperature_offset = temperature.offset;
  a.partial_room = kPartialRoom;
  lowering.bind(a.partial, lowering.temporary(kPartialRoom * query_heads * (2 + a.layer.value_dim) * 4));
  const int arrivals =
      lowering.zeroed_buffer("arrivals of " + std::to_string(query_heads), lowering.max_rows(false) * query_heads * 4);
  lowering.bind(reinterpret_cast<std::uint8_t*&>(a.arrivals), arrivals);
  lowering.bind(a.q, queries);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kAttend, &a);
}

}  // namespace sterna::cuda
