/// Lowers the recurrent ops: one step each, in both lists the same.
#include "cpu/lower_ops.h"
#include "cpu/steps_recurrent.h"
#include "plan/recurrent_nodes.h"

namespace sterna::cpu {

void lower_short_conv(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<ShortConvStep>();
  const ShortConvNode conv = read_short_conv(lowering.program(), node);
  step.channels = conv.channels;
  step.kernel = conv.kernel;
  step.w = conv.by_place(*lowering.optional_vector(node, "w"));
  const std::vector<float>* bias = lowering.optional_vector(node, "bias");
  step.bias = bias == nullptr ? nullptr : bias->data();
  step.layer = node.integer("layer");
  lowering.bind(step.x, node.input("x"));
  lowering.bind(step.y, lowering.define(node.outputs[0]));
  lowering.add(run_short_conv, &step);
}

void lower_ssm_scan(Lowering& lowering, const Node& node) {
  auto& step = lowering.make<SsmScanStep>();
  const SsmScanNode scan = read_ssm_scan(lowering.program(), node);
  step.heads = scan.heads;
  step.head_dim = scan.head_dim;
  step.groups = scan.groups;
  step.state_dim = scan.state_dim;
  step.per_channel = scan.per_channel;
  step.a = lowering.optional_vector(node, "a")->data();
  step.d = lowering.optional_vector(node, "d")->data();
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
  const DeltaRuleNode delta = read_delta_rule(lowering.program(), node);
  step.key_heads = delta.key_heads;
  step.key_dim = delta.key_dim;
  step.value_heads = delta.value_heads;
  step.value_dim = delta.value_dim;
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
