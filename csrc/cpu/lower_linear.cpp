/// Lowers linear and unembed: one step that prepares the rows, one that multiplies; few rows have both in one.
#include <algorithm>

#include "base/error.h"
#include "cpu/lower_ops.h"

namespace sterna::cpu {
namespace {

/// The step that prepares the rows of x for weights of one rule.
void fill_prepare(Lowering& lowering, const Node& node, const Place& x, const ActivationRule& rule, LinearStep& step) {
  const std::vector<float>* norm = lowering.optional_vector(node, "norm");
  step.norm = norm == nullptr ? nullptr : norm->data();
  step.eps = norm == nullptr ? 0.0f : static_cast<float>(node.number("eps"));
  step.tiles.k = lowering.row_size(node.input("x"));
  step.tiles.block = rule.block;
  step.tiles.scale_every = rule.scale_every;
  lowering.need_scratch(step.tiles.k);
  lowering.need_tiles(step.tiles);
  lowering.bind(step.x, x);
}

const float* vector_data(const Lowering& lowering, ValueId weight) {
  return lowering.weights().vector(lowering.program().value(weight).name).data();
}

/// Multiplies the rows at x by the node's weights, one step for each activation rule among them.
void lower_matmul(Lowering& lowering, const Node& node, const Place& x) {
  const std::vector<ValueId> weights = node.input_list("w");
  const std::vector<ValueId> biases = node.input_list("bias");
  const bool glu = node.has("glu");

  std::vector<ActivationRule> rules;  // distinct, in order of appearance
  for (const ValueId w : weights) {
    const ActivationRule rule = activation_rule(node, lowering.matrix(w));
    if (std::find(rules.begin(), rules.end(), rule) == rules.end()) rules.push_back(rule);
  }
  if (glu && rules.size() != 1) {
    throw UnsupportedModelError("linear " + node.name + ": gate and up need the same activation rule (" + node.source +
                                ")");
  }
  for (const ActivationRule& rule : rules) {
    auto& step = lowering.make<LinearStep>();
    fill_prepare(lowering, node, x, rule, step);
    const int buffer = lowering.temporary(lowering.tile_space_bytes(step.tiles, x.outputs));
    lowering.bind(step.tiles.base, buffer);
    lowering.add_many(run_prepare, &step);

    step.parts.reserve(node.outputs.size());  // addresses are bound
    for (std::size_t i = 0; i < node.outputs.size(); ++i) {
      const PackedMatrix& w = lowering.matrix(weights[i]);
      if (activation_rule(node, w) != rule) continue;
      MatmulPart part{};
      part.w = &w;
      if (!biases.empty()) part.bias = vector_data(lowering, biases[i]);
      if (glu) {
        part.up = &lowering.matrix(weights[1]);
        part.glu = activation_kind(node, "glu");
        if (!biases.empty()) part.up_bias = vector_data(lowering, biases[1]);
      }
      lowering.need_unpacked(w);
      if (part.up != nullptr) lowering.need_unpacked(*part.up);
      step.parts.push_back(part);
      lowering.bind(step.parts.back().y, lowering.define(node.outputs[i]));
    }
    lowering.touch(buffer);
    lowering.touch(x);  // the fused step reads it while results are written
    if (const ValueId residual = node.input("residual"); residual != kNoValue) {
      lowering.bind(step.parts.back().residual, residual);
    }
    lowering.add(run_linear, &step, run_matmul, &step);
    lowering.warm(warm_linear);
  }
}

}  // namespace

ActivationRule activation_rule(const Node& node, const PackedMatrix& w) {
  if (w.format->scales == ScaleKind::kNone) return {0, 0};
  const std::int64_t block = w.format->scales == ScaleKind::kSuper ? 256 : 32;
  const bool per_token = node.text("activation") == "int8_per_token";
  return {per_token ? w.k : block, block};
}

void lower_linear(Lowering& lowering, const Node& node) {
  lower_matmul(lowering, node, lowering.place_of(node.input("x")));
}

void lower_head_linear(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<HeadLinearStep>();
  const ValueId x = node.input("x");
  step.w = lowering.experts(node.input("w"));
  const ActivationRule rule = activation_rule(node, step.w[0]);
  step.tiles.k = step.w[0].k;
  step.tiles.block = rule.block;
  step.tiles.scale_every = rule.scale_every;
  step.head_bytes = lowering.tile_space_bytes(step.tiles, lowering.place_of(x).outputs);
  lowering.need_unpacked(step.w[0]);
  const int buffer = lowering.temporary(step.head_bytes * static_cast<std::int64_t>(step.w.size()));
  lowering.bind(step.x, x);
  lowering.bind(step.tiles.base, buffer);
  lowering.add(run_head_prepare, &step);
  lowering.touch(buffer);
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_head_linear, &step);
}

/// Only the wanted rows are multiplied: the rest of [T, k] is left out here where no pass has done it before.
void lower_unembed(Lowering& lowering, const Node& node) {
  const Place x = lowering.place_of(node.input("x"));
  if (x.outputs) {
    lower_matmul(lowering, node, x);
    return;
  }
  auto& step = lowering.make<CopyStep>();
  step.n = lowering.row_size(node.input("x"));
  const Place rows = lowering.temporary_rows(step.n, true);
  lowering.bind(step.x, x);
  lowering.bind(step.y, rows);
  lowering.add(run_take_rows, &step);
  lower_matmul(lowering, node, rows);
}

}  // namespace sterna::cpu
