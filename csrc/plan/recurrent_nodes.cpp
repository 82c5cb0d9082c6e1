#include "plan/recurrent_nodes.h"

namespace sterna {
namespace {

const Shape& shape_of(const Program& program, const Node& node, std::string_view role) {
  return program.value(node.input(role)).shape;
}

std::int32_t extent(const Shape& shape, std::size_t i) { return static_cast<std::int32_t>(shape[i].size); }

}  // namespace

std::vector<float> ShortConvNode::by_place(const std::vector<float>& w) const {
  std::vector<float> turned(w.size());
  for (std::int64_t c = 0; c < channels; ++c) {
    for (std::int64_t j = 0; j < kernel; ++j) {
      turned[static_cast<std::size_t>(j * channels + c)] = w[static_cast<std::size_t>(c * kernel + j)];
    }
  }
  return turned;
}

ShortConvNode read_short_conv(const Program& program, const Node& node) {
  const Shape& w = shape_of(program, node, "w");
  return {w[0].size, extent(w, 1)};
}

SsmScanNode read_ssm_scan(const Program& program, const Node& node) {
  const Shape& x = shape_of(program, node, "x");
  const Shape& b = shape_of(program, node, "b");
  SsmScanNode read{extent(x, 1), extent(x, 2), extent(b, 1), extent(b, 2), false};
  std::int64_t size = 1;
  for (const Dim& dim : shape_of(program, node, "a")) size *= dim.size;
  read.per_channel = read.head_dim == 1 && read.groups == 1 && size == x[1].size * b[2].size;
  return read;
}

DeltaRuleNode read_delta_rule(const Program& program, const Node& node) {
  const Shape& k = shape_of(program, node, "k");
  const Shape& v = shape_of(program, node, "v");
  return {extent(k, 1), extent(k, 2), extent(v, 1), extent(v, 2)};
}

}  // namespace sterna
