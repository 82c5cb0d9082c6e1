/// Lowers rope and attention: K and V go to the cache first, then every query reads the cache only.
#include "base/error.h"
#include "cpu/lower_ops.h"

namespace sterna::cpu {

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

void lower_attention(Lowering& lowering, const Node& node) {
  if (!node.flag("causal")) {
    throw UnsupportedModelError("attention " + node.name + ": the CPU backend has causal attention only (" +
                                node.source + ")");
  }
  const Shape& q = lowering.program().value(node.input("q")).shape;
  const Shape& k = lowering.program().value(node.input("k")).shape;
  const Shape& v = lowering.program().value(node.input("v")).shape;
  const int query_heads = static_cast<int>(q[1].size);

  auto& store = lowering.make<StoreKvStep>();
  store.query_heads = query_heads;
  store.layer = node.integer("layer");
  if (const std::vector<float>* norm = lowering.optional_vector(node, "q_norm"); norm != nullptr) {
    store.query_transform.norm = norm->data();
    store.key_transform.norm = lowering.optional_vector(node, "k_norm")->data();
    store.query_transform.eps = store.key_transform.eps = static_cast<float>(node.number("eps"));
  }
  if (node.input("positions") != kNoValue) {
    lowering.bind_rope(store.query_transform, node, "rope.");
    lowering.bind_rope(store.key_transform, node, "rope.");
  }
  Place queries = lowering.place_of(node.input("q"));
  const bool transformed = store.query_transform.norm != nullptr || node.input("positions") != kNoValue;
  lowering.bind(store.q, queries);
  lowering.bind(store.k, node.input("k"));
  lowering.bind(store.v, node.input("v"));
  if (transformed) {
    queries = lowering.temporary_rows(query_heads * q[2].size, false);
    lowering.bind(store.q_out, queries);
  }
  const std::int64_t head_floats = std::max(k[2].size, v[2].size);
  lowering.need_scratch(k[1].size * k[2].size + head_floats + 16);
  lowering.add(run_store_kv, &store);

  auto& attend = lowering.make<AttendStep>();
  attend.query_heads = query_heads;
  attend.layer = store.layer;
  attend.scale = static_cast<float>(node.number("scale"));
  attend.softcap = static_cast<float>(node.number("softcap"));
  attend.window = node.integer("window");
  lowering.bind(attend.q, queries);
  lowering.bind(attend.y, lowering.define(node.outputs[0]));
  lowering.need_scratch(attend_scratch(kMaxAttentionQueries, v[2].size));
  lowering.add(run_attend, &attend);
}

}  // namespace sterna::cpu
