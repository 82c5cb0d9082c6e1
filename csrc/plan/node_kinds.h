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

/// Floats of a row of a value.
std::int64_t row_floats(const Program& program, ValueId value);

/// Floats of a row that the function gets from the plan before it in a chain: see split_layers. 0: none.
std::int64_t received_floats(const Program& program, const Function& function);

/// Whether the function's result is a row for every token, for the next plan of a chain.
bool is_sent(const Function& function);

/// The activation function that an attribute names. Throws UnsupportedModelError.
ActivationKind activation_kind(const Node& node, std::string_view attribute);

PoolKind pool_kind(const Node& pool);

/// The result of a lora node takes the place of its y, which nobody else may need. Throws UnsupportedModelError.
void check_lora_result(const Program& program, const Node& lora);

}  // namespace sterna
