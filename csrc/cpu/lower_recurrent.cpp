/// Lowers the recurrent ops: one step each, in both lists the same.
#include "cpu/lower_ops.h"
#include "cpu/steps_recurrent.h"

namespace sterna::cpu {
namespace {

const Shape& shape_of(const Lowering& lowering, const Node& node, std::string_view role) {
  return lowering.program().value(node.input(role)).shape;
}

int extent(const Shape& shape, std::size_t i) { return static_cast<int>(shape[i].size); }

}  // namespace

void lower_short_conv(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<ShortConvStep>();
  const Shape& shape = shape_of(lowering, node, "w");
  step.channels = shape[0].size;
  step.kernel = extent(shape, 1);
  const std::vector<float>& w = *lowering.optional_vector(node, "w");
  step.w.resize(w.size());
  for (std::int64_t c = 0; c < step.channels; ++c) {
    for (std::int64_t j = 0; j < step.kernel; ++j) {
      step.w[static_cast<std::size_t>(j * step.channels + c)] = w[static_cast<std::size_t>(c * step.kernel + j)];
    }
  }
  const std::vector<float>* bias = lowering.optional_vector(node, "bias");
  step.bias = bias == nullptr ? nullptr : bias->data();
  step.layer = node.integer("layer");
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_short_conv, &step);
}

void lower_ssm_scan(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<SsmScanStep>();
  const Shape& x = shape_of(lowering, node, "x");
  const Shape& b = shape_of(lowering, node, "b");
  const std::vector<float>& a = *lowering.optional_vector(node, "a");
  step.heads = extent(x, 1);
  step.head_dim = extent(x, 2);
  step.groups = extent(b, 1);
  step.state_dim = extent(b, 2);
  step.a = a.data();
  step.d = lowering.optional_vector(node, "d")->data();
  step.per_channel =
      step.head_dim == 1 && step.groups == 1 && a.size() == static_cast<std::size_t>(x[1].size * b[2].size);
  step.layer = node.integer("layer");
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.dt, node.input("dt"));
  lowering.bind(step.b, node.input("b"));
  lowering.bind(step.c, node.input("c"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_ssm_scan, &step);
}

void lower_delta_rule(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<DeltaRuleStep>();
  const Shape& k = shape_of(lowering, node, "k");
  const Shape& v = shape_of(lowering, node, "v");
  step.key_heads = extent(k, 1);
  step.key_dim = extent(k, 2);
  step.value_heads = extent(v, 1);
  step.value_dim = extent(v, 2);
  step.layer = node.integer("layer");
  lowering.bind(step.q, node.input("q"));
  lowering.bind(step.k, node.input("k"));
  lowering.bind(step.v, node.input("v"));
  lowering.bind(step.g, node.input("g"));
  lowering.bind(step.beta, node.input("beta"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_delta_rule, &step);
}

}  // namespace sterna::cpu
