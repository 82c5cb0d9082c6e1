/// Lowers route and expert_glu.
#include <string>

#include "cuda/lowering.h"
#include "plan/node_kinds.h"

namespace sterna::cuda {
namespace {

/// The sorted pairs of a batch, and the buffers that hold them.
struct Pairs {
  ExpertPairs pairs{};
  int groups, sorted, places;

  Pairs(Lowering& lowering, std::int64_t num_experts, std::int64_t used, std::int64_t rows) {
    pairs.num_experts = num_experts;
    pairs.used = used;
    pairs.max_pairs = rows * used;
    groups = lowering.temporary((1 + 3 * pairs.max_groups()) * 4);
    sorted = lowering.temporary(pairs.max_pairs * 4);
    places = lowering.temporary(pairs.max_pairs * 4);
  }

  void bind(Lowering& lowering, ExpertPairs& to) const {
    to = pairs;
    lowering.bind(to.groups, groups);
    lowering.bind(to.pairs, sorted);
    lowering.bind(to.places, places);
  }
};

struct Prepared {
  PreparedRows rows;
  int buffer;
};

/// A row for each sorted pair: of x's rows, times their weight where `weights` is a value, or with is_sorted x's own.
Prepared prepare(Lowering& lowering, const Pairs& pairs, const Place& x, bool is_sorted, ValueId weights,
                 std::int64_t k, PreparedForm form) {
  auto& a = lowering.make<PrepareArguments>();
  a.k = k;
  a.parts = 1;
  a.used = pairs.pairs.used;
  a.is_sorted = is_sorted;
  if (weights != kNoValue) lowering.bind(a.weights, weights);
  a.to.k = (k + kUnit - 1) / kUnit * kUnit;
  a.to.max_rows = pairs.pairs.max_pairs;
  a.to.form = form;
  const int buffer = lowering.temporary(a.to.bytes());
  lowering.bind(a.pairs, pairs.sorted);
  lowering.bind(a.x, x);
  lowering.bind(a.to.base, buffer);
  lowering.add(Kernel::kPrepare, &a);
  return {a.to, buffer};
}

/// A row for each sorted pair.
Place pair_rows(Lowering& lowering, const Pairs& pairs, std::int64_t n, bool outputs) {
  const std::int64_t stride = (n + 15) / 16 * 16;
  return {lowering.temporary(pairs.pairs.max_pairs * stride * 4), 0, stride, outputs};
}

void bind_matmul(Lowering& lowering, const Pairs& pairs, const Prepared& x, MatmulArguments& a) {
  a.kind = MatmulKind::kExperts;
  pairs.bind(lowering, a.pairs);
  a.x = x.rows;
  lowering.bind(a.x.base, x.buffer);
}

}  // namespace

void lower_route(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<RouteArguments>();
  a.num_experts = lowering.row_size(node.input("x"));
  if (a.num_experts > kMaxExperts) {
    unsupported(node, "the CUDA backend takes up to " + std::to_string(kMaxExperts) + " experts, not " +
                          std::to_string(a.num_experts));
  }
  a.used = node.integer("used");
  a.is_sigmoid = node.text("scores") == "sigmoid";
  a.normalize = node.flag("normalize");
  a.factor = static_cast<float>(node.number("scale"));
  a.bias = lowering.vector(node, "bias");
  a.groups = node.integer("groups");
  a.groups_used = node.integer("groups_used");
  a.two_best = node.text("group_scores") == "two_best";
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.experts, lowering.define(node.outputs[0]));
  lowering.bind(a.weights, lowering.define(node.outputs[1]));
  lowering.add(Kernel::kRoute, &a);
}

void lower_expert_glu(Lowering& lowering, const Node& node) {
  const Weights::Matrices& gate = lowering.matrices(node.input("gate"));
  const Weights::Matrices& up = lowering.matrices(node.input("up"));
  const Weights::Matrices& down = lowering.matrices(node.input("down"));
  if (gate.first.layout != up.first.layout) unsupported(node, "gate and up have different formats");
  const Place x = lowering.place_of(node.input("x"));

  auto& sort = lowering.make<SortPairsArguments>();
  const Pairs pairs(lowering, gate.count, lowering.row_size(node.input("experts")), lowering.max_rows(x.outputs));
  lowering.bind(sort.experts, node.input("experts"));
  pairs.bind(lowering, sort.pairs);
  lowering.add(Kernel::kSortPairs, &sort);

  const bool weigh_input = node.flag("weigh_input");
  const Prepared rows = prepare(lowering, pairs, x, false, weigh_input ? node.input("weights") : kNoValue, gate.first.k,
                                prepared_form(node, gate));
  auto& gated = lowering.make<MatmulArguments>();
  bind_matmul(lowering, pairs, rows, gated);
  gated.products[0].w = gate.first;
  gated.up = up.first;
  gated.products[0].bias = lowering.vector(node, "gate_bias");
  gated.up_bias = lowering.vector(node, "up_bias");
  gated.glu = activation_kind(node, "glu");
  const Place hidden = pair_rows(lowering, pairs, gate.first.n, x.outputs);
  lowering.bind(gated.products[0].y, hidden);
  lowering.add(Kernel::kMatmul, &gated);

  const Prepared hidden_rows =
      prepare(lowering, pairs, hidden, true, kNoValue, down.first.k, prepared_form(node, down));
  auto& last = lowering.make<MatmulArguments>();
  bind_matmul(lowering, pairs, hidden_rows, last);
  last.products[0].w = down.first;
  last.products[0].bias = lowering.vector(node, "down_bias");
  const Place parts = pair_rows(lowering, pairs, down.first.n, x.outputs);
  lowering.bind(last.products[0].y, parts);
  lowering.add(Kernel::kMatmul, &last);

  auto& combine = lowering.make<CombineArguments>();
  pairs.bind(lowering, combine.pairs);
  combine.n = down.first.n;
  lowering.bind(combine.x, parts);
  if (!weigh_input) lowering.bind(combine.weights, node.input("weights"));
  if (const ValueId residual = node.input("residual"); residual != kNoValue) lowering.bind(combine.residual, residual);
  lowering.bind(combine.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kCombine, &combine);
}

}  // namespace sterna::cuda
