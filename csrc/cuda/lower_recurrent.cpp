/// Lowers the recurrent ops: one step each.
#include "cuda/lowering.h"
#include "plan/recurrent_nodes.h"

namespace sterna::cuda {

void lower_short_conv(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<ShortConvArguments>();
  const ShortConvNode conv = read_short_conv(lowering.program(), node);
  a.channels = conv.channels;
  a.kernel = conv.kernel;
  a.w = lowering.constants().add(conv.by_place(lowering.host_vector(node.input("w"))));
  a.bias = lowering.vector(node, "bias");
  a.state_offset = lowering.state_offset(node);
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kShortConv, &a);
}

void lower_ssm_scan(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<SsmScanArguments>();
  const SsmScanNode scan = read_ssm_scan(lowering.program(), node);
  a.heads = scan.heads;
  a.head_dim = scan.head_dim;
  a.groups = scan.groups;
  a.state_dim = scan.state_dim;
  a.per_channel = scan.per_channel;
  if (a.state_dim > kMaxScanStateDim) {
    unsupported(node, "the CUDA backend takes states of up to " + std::to_string(kMaxScanStateDim) + " numbers, not " +
                          std::to_string(a.state_dim));
  }
  a.a = lowering.vector(node, "a");
  a.d = lowering.vector(node, "d");
  a.state_offset = lowering.state_offset(node);
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.dt, node.input("dt"));
  lowering.bind(a.b, node.input("b"));
  lowering.bind(a.c, node.input("c"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kSsmScan, &a);
}

void lower_delta_rule(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<DeltaRuleArguments>();
  const DeltaRuleNode delta = read_delta_rule(lowering.program(), node);
  a.key_heads = delta.key_heads;
  a.key_dim = delta.key_dim;
  a.value_heads = delta.value_heads;
  a.value_dim = delta.value_dim;
  if (a.key_dim > kMaxDeltaKeyDim) {
    unsupported(node, "the CUDA backend takes keys of up to " + std::to_string(kMaxDeltaKeyDim) + " numbers, not " +
                          std::to_string(a.key_dim));
  }
  a.state_offset = lowering.state_offset(node);
  lowering.bind(a.q, node.input("q"));
  lowering.bind(a.k, node.input("k"));
  lowering.bind(a.v, node.input("v"));
  lowering.bind(a.g, node.input("g"));
  lowering.bind(a.beta, node.input("beta"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kDeltaRule, &a);
}

}  // namespace sterna::cuda
