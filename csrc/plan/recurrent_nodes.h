/// What the operands and attributes of recurrent nodes say, for the lowerings of all backends.
#pragma once

#include <cstdint>
#include <vector>

#include "program/program.h"

namespace sterna {

struct ShortConvNode {
  std::int64_t channels;
  std::int32_t kernel;

  /// The weight [channels, kernel] as [kernel, channels]: rows meet all channels of a place at once.
  std::vector<float> by_place(const std::vector<float>& w) const;
};
ShortConvNode read_short_conv(const Program& program, const Node& node);

struct SsmScanNode {
  std::int32_t heads, head_dim, groups, state_dim;
  bool per_channel;  // a has a row for each head, whose dimension is 1
};
SsmScanNode read_ssm_scan(const Program& program, const Node& node);

struct DeltaRuleNode {
  std::int32_t key_heads, key_dim, value_heads, value_dim;
};
DeltaRuleNode read_delta_rule(const Program& program, const Node& node);

}  // namespace sterna
