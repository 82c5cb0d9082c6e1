/// The table from op names to lowerings.
#pragma once

#include <string_view>

#include "cpu/lowering.h"
#include "plan/node_kinds.h"

namespace sterna::cpu {

using LowerFunction = void (*)(Lowering& lowering, const Node& node);

/// The op's lowering, or null when the CPU backend has none.
LowerFunction find_lowering(std::string_view op);

/// How activations meet a weight.
struct ActivationRule {
  std::int64_t block;        // k per scale; 0: not quantised; k: one scale per row
  std::int64_t scale_every;  // k per scale as the kernels read them

  bool operator==(const ActivationRule&) const = default;
};
/// The rule that a node's attribute "activation" and the weight's format make.
ActivationRule activation_rule(const Node& node, const PackedMatrix& w);

void lower_linear(Lowering& lowering, const Node& node);
void lower_head_linear(Lowering& lowering, const Node& node);
void lower_unembed(Lowering& lowering, const Node& node);
void lower_rope(Lowering& lowering, const Node& node);
void lower_store_kv(Lowering& lowering, const Node& node);
void lower_attention(Lowering& lowering, const Node& node);
void lower_short_conv(Lowering& lowering, const Node& node);
void lower_ssm_scan(Lowering& lowering, const Node& node);
void lower_delta_rule(Lowering& lowering, const Node& node);
void lower_route(Lowering& lowering, const Node& node);
void lower_expert_glu(Lowering& lowering, const Node& node);

}  // namespace sterna::cpu
