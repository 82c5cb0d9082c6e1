/// Lowers the recurrent ops: one step each.
#include "cuda/lowering.h"

namespace sterna::cuda {
namespace {

const Shape& shape_of(const Lowering& lowering, const Node& node, std::string_view role) {
  return lowering.program().value(node.input(role)).shape;
}

std::int32_t extent(const Shape& shape, std::size_t i) { return static_cast<std::int32_t>(shape[i].size); }

}  // namespace

void lower_short_conv(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<ShortConvArguments>();
  const Shape& shape = shape_of(lowering, node, "w");
  a.channels = shape[0].size;
  a.kernel = extent(shape, 1);
  const std::vector<float>& w = lowering.host_vector(node.input("w"));
  std::vector<float> by_place(w.size());
  for (std::int64_t c = 0; c < a.channels; ++c) {
    for (std::int64_t j = 0; j < a.kernel; ++j) {
      by_place[static_cast<std::size_t>(j * a.channels + c)] = w[static_cast<std::size_t>(c * a.kernel + j)];
    }
  }
  a.w = lowering.constants().add(by_place);
  a.bias = lowering.vector(node, "bias");
  a.state_offset = lowering.state_offset(node);
  lowering.bind(a.x, node.input("x"));
  lowering.bind(a.y, lowering.define(node.outputs[0]));
  lowering.add(Kernel::kShortConv, &a);
}

void lower_ssm_scan(Lowering& lowering, const Node& node) {
  auto& a = lowering.make<SsmScanArguments>();
  const Shape& x = shape_of(lowering, node, "x");
  const Shape& b = shape_of(lowering, node, "b");
  a.heads = extent(x, 1);
  a.head_dim = extent(x, 2);
  a.groups = extent(b, 1);
  a.state_dim = extent(b, 2);
  if (a.state_dim > kMaxScanStateDim) {
    unsupported(node, "the CUDA backend takes states of up to " + std::to_string(kMaxScanStateDim) + " numbers, not " +
                          std::to_string(a.state_dim));
  }
  a.a = lowering.vector(node, "a");
  a.d = lowering.vector(node, "d");
  a.per_channel = a.head_dim == 1 && a.groups == 1 && lowering.vector_size(node.input("a")) == x[1].size * b[2].size;
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
  const Shape& k = shape_of(lowering, node, "k");
  const Shape& v = shape_of(lowering, node, "v");
  a.key_heads = extent(k, 1);
  a.key_dim = extent(k, 2);
  a.value_heads = extent(v, 1);
  a.value_dim = extent(v, 2);
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
