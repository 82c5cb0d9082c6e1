/// Lowers rope and attention: K and V go to the cache first, then every query reads the cache only.
#include <algorithm>

#include "cuda/lowering.h"
#include "plan/attention_node.h"

namespace sterna::cuda {
namespace {

/// Rows times spans of 256 keys that several blocks can share the work of: 512 thousand keys of one row, or 16 thousand
/// of each of 32.
constexpr std::int64_t kPartialRoom = 2048;

/// The bias of each head by distance, computed once per run for all nodes that share it.
void bind_relative_bias(Lowering& lowering, const AttentionNode& attention, AttendArguments& attend) {
  const auto& [w, farthest, name] = attention.relative_bias;
  if (w == kNoValue) return;
  const std::int64_t distances = 2 * farthest + 1;
  const auto [buffer, is_new] = lowering.shared_buffer(name, attention.query_heads * distances * 4);
  if (is_new) {
    auto& a = lowering.make<RelativeBiasArguments>();
    a.w = lowering.matrices(w).first;
    a.farthest = farthest;
    std::vector<std::int32_t> buckets;
    for (std::int64_t d = -farthest; d <= farthest; ++d) {
      buckets.push_back(static_cast<std::int32_t>(relative_bucket(d, attention.causal, a.w.n, farthest)));
    }
    a.buckets = lowering.constants().add(buckets);
    lowering.bind(a.y, buffer);
    lowering.add(Kernel::kRelativeBias, &a);
  }
  lowering.bind(attend.relative_bias, buffer);
  attend.farthest = farthest;
}

void bind_kv(Lowering& lowering, const Node& node, StoreKvArguments& store) {
  store.layer = lowering.kv_layer(node.integer("layer"));
  lowering.bind(store.k, node.input("k"));
  if (const ValueId v = node.input("v"); v != kNoValue) lowering.bind(store.v, v);
}

/// K and V of attention to the cache; where the queries are when their norm and rope are done, too.
Place store_keys(Lowering& lowering, const Node& node, const AttentionNode& attention, Place queries) {
  auto& store = lowering.make<StoreKvArguments>();
  store.query_heads = static_cast<std::int32_t>(attention.query_heads);
  if (attention.normed) {
    store.query_transform.norm = lowering.vector(node, "q_norm");
    store.key_transform.norm = lowering.vector(node, "k_norm");
    store.query_transform.eps = store.key_transform.eps = attention.norm_eps;
  }
  if (attention.roped) {
    lowering.bind_rope(store.query_transform, node, "rope.");
    lowering.bind_rope(store.key_transform, node, "rope.");
  }
  lowering.bind(store.q, queries);
  bind_kv(lowering, node, store);
  if (attention.normed || attention.roped) {
    queries = lowering.temporary_rows(attention.query_heads * attention.head_dim, false);
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
  const AttentionNode attention = read_attention(lowering.program(), node);
  const std::int64_t query_heads = attention.query_heads;
  Place queries = lowering.place_of(node.input("q"));
  if (attention.stores) queries = store_keys(lowering, node, attention, queries);

  auto& a = lowering.make<AttendArguments>();
  a.query_heads = static_cast<std::int32_t>(query_heads);
  a.layer = lowering.kv_layer(attention.layer);
  if (const std::int32_t most = std::max(a.layer.head_dim, a.layer.value_dim); most > kMaxHeadDim) {
    unsupported(node, "the CUDA backend takes heads of up to " + std::to_string(kMaxHeadDim) + " numbers, not " +
                          std::to_string(most));
  }
  a.scale = attention.scale;
  a.softcap = attention.softcap;
  a.window = attention.window;
  a.chunk = attention.chunk;
  a.causal = attention.causal;
  a.cross = attention.cross;
  bind_relative_bias(lowering, attention, a);
  a.sinks = lowering.vector(node, "sinks");
  if (!attention.slopes.empty()) a.slopes = lowering.constants().add(attention.slopes);
  a.temperature_scale = attention.temperature.scale;
  a.temperature_length = attention.temperature.length;
  a.temperature_offset = attention.temperature.offset;
  a.partial_room = kPartialRoom;
  lowering.bind(a.partial, lowering.temporary(kPartialRoom * query_heads * (2 + a.layer.value_dim) * 4));
  lowering.bind_zeroed(a.arrivals, "arrivals of " + std::to_string(query_heads),
                       lowering.max_rows(false) * query_heads * 4);
  lowering.bind(a.q, queries);
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.leave_maxima(node.outputs[0], a.maxima);
  lowering.add(Kernel::kAttend, &a);
}

}  // namespace sterna::cuda
