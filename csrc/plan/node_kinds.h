/// What a node's operands and attributes mean to a backend.
#pragma once

#include <string>
#include <string_view>

#include "plan/kinds.h"
#include "program/program.h"

namespace sterna {

/// Throws UnsupportedModelError that names the node and its line in the model file.
[[noreturn]] void unsupported(const Node& node, const std::string& problem);

/// What an embed node gathers by.
EmbeddedIds embedded_ids(const Program& program, const Node& embed);

/// Whether an embed node is the first of tokens in its function: the one whose rows embeddings can stand for.
bool is_first_embedding(const Program& program, const Node& embed);

/// The activation function that an attribute names. Throws UnsupportedModelError.
ActivationKind activation_kind(const Node& node, std::string_view attribute);

PoolKind pool_kind(const Node& pool);

/// The result of a lora node takes the place of its y, which nobody else may need. Throws UnsupportedModelError.
void check_lora_result(const Program& program, const Node& lora);

}  // namespace sterna
