/// The table from op names to lowerings.
#pragma once

#include <string_view>

#include "cpu/lowering.h"

namespace sterna::cpu {

using LowerFunction = void (*)(Lowering& lowering, const Node& node);

/// The op's lowering, or null when the CPU backend has none.
LowerFunction find_lowering(std::string_view op);

/// The activation function that an attribute names.
ActivationKind activation_kind(const Node& node, std::string_view attribute);

void lower_linear(Lowering& lowering, const Node& node);
void lower_unembed(Lowering& lowering, const Node& node);
void lower_rope(Lowering& lowering, const Node& node);
void lower_attention(Lowering& lowering, const Node& node);

}  // namespace sterna::cpu
