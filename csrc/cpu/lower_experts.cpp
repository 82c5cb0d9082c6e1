/// Lowers route and expert_glu.
#include "base/error.h"
#include "cpu/lower_ops.h"
#include "cpu/steps_experts.h"

namespace sterna::cpu {
namespace {

/// Rows of x, prepared for each expert of a weight.
struct Prepared {
  ExpertTiles tiles;
  int buffer;
};

Prepared prepare(Lowering& lowering, const Place& x, bool is_sorted, ValueId weights, const ExpertPairs& pairs,
                 int pairs_buffer, const ActivationRule& rule, std::int64_t k) {
  auto& step = lowering.make<ExpertPrepareStep>();
  step.is_sorted = is_sorted;
  if (weights != kNoValue) {
    lowering.bind(step.weights, weights);
    lowering.need_scratch(k);
  }
  step.pairs = pairs;
  TileSpace tiles;
  tiles.k = k;
  tiles.block = rule.block;
  tiles.scale_every = rule.scale_every;
  step.tiles = ExpertTiles(tiles, lowering.kernels());
  const int buffer = lowering.temporary(step.tiles.bytes(pairs));
  lowering.bind(step.x, x);
  lowering.bind(step.pairs.base, pairs_buffer);
  lowering.bind(step.tiles.first.base, buffer);
  lowering.add(run_expert_prepare, &step);
  return {step.tiles, buffer};
}

/// Place of one row for each pair.
Place pair_rows(Lowering& lowering, const ExpertPairs& pairs, std::int64_t n, bool outputs) {
  const std::int64_t stride = (n + 15) / 16 * 16;
  return {lowering.temporary(pairs.max_pairs * stride * 4), 0, stride, outputs};
}

/// Of the tensors that `step` names.
Place multiply(Lowering& lowering, ExpertMatmulStep& step, const Prepared& x, const ExpertPairs& pairs,
               int pairs_buffer, bool outputs) {
  const std::span<const PackedMatrix> w = step.w, up = step.up;
  step.pairs = pairs;
  step.tiles = x.tiles;
  lowering.need_unpacked(w[0]);
  if (!up.empty()) lowering.need_unpacked(up[0]);
  const Place y = pair_rows(lowering, pairs, w[0].n, outputs);
  lowering.bind(step.pairs.base, pairs_buffer);
  lowering.bind(step.tiles.first.base, x.buffer);
  lowering.bind(step.y, y);
  lowering.add(run_expert_matmul, &step);
  lowering.warm(warm_expert_matmul);
  return y;
}

const float* floats_of(Lowering& lowering, const Node& node, std::string_view role) {
  const std::vector<float>* vector = lowering.optional_vector(node, role);
  return vector == nullptr ? nullptr : vector->data();
}

}  // namespace

void lower_route(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<RouteStep>();
  step.num_experts = lowering.row_size(node.input("x"));
  step.used = node.integer("used");
  step.is_sigmoid = node.text("scores") == "sigmoid";
  step.normalize = node.flag("normalize");
  step.factor = static_cast<float>(node.number("scale"));
  step.bias = floats_of(lowering, node, "bias");
  step.groups = node.integer("groups");
  step.groups_used = node.integer("groups_used");
  step.two_best = node.text("group_scores") == "two_best";
  lowering.need_scratch(step.num_experts + 2 * step.groups);
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.experts, lowering.define(node.outputs[0]));
  lowering.bind(step.weights, lowering.define(node.outputs[1]));
  lowering.add(run_route, &step);
}

void lower_expert_glu(Lowering& lowering, const Node& node) {
  const std::span<const PackedMatrix> gate = lowering.experts(node.input("gate"));
  const std::span<const PackedMatrix> up = lowering.experts(node.input("up"));
  const std::span<const PackedMatrix> down = lowering.experts(node.input("down"));
  const ActivationRule rule = activation_rule(node, gate[0]);
  if (activation_rule(node, up[0]) != rule) {
    throw UnsupportedModelError("expert_glu " + node.name + ": gate and up need the same activation rule (" +
                                node.source + ")");
  }
  const Place x = lowering.place_of(node.input("x"));

  auto& sort = lowering.make<SortPairsStep>();
  ExpertPairs pairs;
  pairs.num_experts = static_cast<std::int64_t>(gate.size());
  pairs.used = lowering.row_size(node.input("experts"));
  pairs.max_pairs = lowering.max_rows(x.outputs) * pairs.used;
  sort.pairs = pairs;
  const int pairs_buffer = lowering.temporary(pairs.bytes());
  lowering.need_scratch(pairs.num_experts);
  lowering.bind(sort.experts, node.input("experts"));
  lowering.bind(sort.pairs.base, pairs_buffer);
  lowering.add(run_sort_pairs, &sort);

  const bool weigh_input = node.flag("weigh_input");
  const Prepared rows =
      prepare(lowering, x, false, weigh_input ? node.input("weights") : kNoValue, pairs, pairs_buffer, rule, gate[0].k);
  auto& gated = lowering.make<ExpertMatmulStep>();
  gated.w = gate;
  gated.up = up;
  gated.bias = floats_of(lowering, node, "gate_bias");
  gated.up_bias = floats_of(lowering, node, "up_bias");
  gated.glu = activation_kind(node, "glu");
  const Place hidden = multiply(lowering, gated, rows, pairs, pairs_buffer, x.outputs);
  const Prepared hidden_rows =
      prepare(lowering, hidden, true, kNoValue, pairs, pairs_buffer, activation_rule(node, down[0]), down[0].k);
  auto& last = lowering.make<ExpertMatmulStep>();
  last.w = down;
  last.bias = floats_of(lowering, node, "down_bias");
  const Place parts = multiply(lowering, last, hidden_rows, pairs, pairs_buffer, x.outputs);

  auto& combine = lowering.make<CombineStep>();
  combine.pairs = pairs;
  combine.n = down[0].n;
  lowering.need_scratch(combine.n);
  lowering.bind(combine.x, parts);
  if (!weigh_input) lowering.bind(combine.weights, node.input("weights"));
  lowering.bind(combine.pairs.base, pairs_buffer);
  lowering.bind(combine.y, lowering.define(node.outputs[0]));
  if (const ValueId residual = node.input("residual"); residual != kNoValue) lowering.bind(combine.residual, residual);
  lowering.add(run_combine, &combine);
}

}  // namespace sterna::cpu
