/// Lowers rope and attention: K and V go to the cache first, then every query reads the cache only.
#include <algorithm>

#include "cpu/lower_ops.h"
#include "plan/attention_node.h"

namespace sterna::cpu {
namespace {

/// The bias of each head by distance, computed once per run for all nodes that share it.
void bind_relative_bias(Lowering& lowering, const AttentionNode& attention, AttendStep& attend) {
  const auto& [w, farthest, name] = attention.relative_bias;
  if (w == kNoValue) return;
  const std::int64_t row = 2 * farthest + 1;
  const auto [buffer, is_new] = lowering.shared_buffer(name, attention.query_heads * row * 4);
  if (is_new) {
    auto& table = lowering.make<RelativeBiasStep>();
    table.w = &lowering.matrix(w);
    table.farthest = farthest;
    table.causal = attention.causal;
    lowering.bind(table.y, buffer);
    lowering.need_scratch(table.w->k);
    lowering.add(run_relative_bias, &table);
  }
  lowering.bind(attend.relative_bias, buffer);
  attend.farthest = farthest;
}

void bind_kv(Lowering& lowering, const Node& node, StoreKvStep& store) {
  store.layer = node.integer("layer");
  const Shape& k = lowering.program().value(node.input("k")).shape;
  std::int64_t head_floats = k[2].size;
  lowering.bind(store.k, node.input("k"));
  if (const ValueId v = node.input("v"); v != kNoValue) {
    lowering.bind(store.v, v);
    head_floats = std::max(head_floats, lowering.program().value(v).shape[2].size);
  }
  lowering.need_scratch(k[1].size * k[2].size + head_floats + 16);
}

/// K and V of attention to the cache; where the queries are when their norm and rope are done, too.
Place store_keys(Lowering& lowering, const Node& node, const AttentionNode& attention, Place queries) {
  auto& store = lowering.make<StoreKvStep>();
  store.query_heads = static_cast<int>(attention.query_heads);
  if (attention.normed) {
    store.query_transform.norm = lowering.optional_vector(node, "q_norm")->data();
    store.key_transform.norm = lowering.optional_vector(node, "k_norm")->data();
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
  lowering.add(run_store_kv, &store);
  return queries;
}

}  // namespace

void lower_rope(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<RopeStep>();
  const ValueId x = node.input("x");
  const Shape& shape = lowering.program().value(x).shape;
  step.heads = static_cast<int>(shape[1].size);
  step.head_dim = static_cast<int>(shape[2].size);
  lowering.bind_rope(step.transform, node, "");
  lowering.bind(step.x, x);
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_rope, &step);
}

/// The result is another name for k.
void lower_store_kv(Lowering& lowering, const Node& node) {
  auto& store = lowering.make<StoreKvStep>();
  bind_kv(lowering, node, store);
  lowering.alias(node.outputs[0], lowering.place_of(node.input("k")));
  lowering.add(run_store_kv, &store);
}

void lower_attention(Lowering& lowering, const Node& node) {
  const AttentionNode attention = read_attention(lowering.program(), node);
  Place queries = lowering.place_of(node.input("q"));
  if (attention.stores) queries = store_keys(lowering, node, attention, queries);

  auto& attend = lowering.make<AttendStep>();
  attend.query_heads = static_cast<int>(attention.query_heads);
  attend.layer = attention.layer;
  attend.scale = attention.scale;
  attend.softcap = attention.softcap;
  attend.window = attention.window;
  attend.chunk = attention.chunk;
  attend.causal = attention.causal;
  attend.cross = attention.cross;
  const std::vector<float>* sinks = lowering.optional_vector(node, "sinks");
  attend.sinks = sinks == nullptr ? nullptr : sinks->data();
  attend.slopes = attention.slopes;
  attend.temperature = attention.temperature;
  bind_relative_bias(lowering, attention, attend);
  lowering.bind(attend.q, queries);
  lowering.bind(attend.y, lowering.define(node.outputs[0]));
  lowering.need_scratch(
      attend_scratch(kMaxAttentionQueries, lowering.row_size(node.outputs[0]) / attention.query_heads));
  lowering.add(run_attend, &attend);
}

}  // namespace sterna::cpu
