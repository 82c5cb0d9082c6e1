/// Cuts a Program between two layers: what comes before one of them, and the rest. Each part can be compiled for a
/// device of its own.
#pragma once

#include <cstdint>
#include <utility>

#include "program/program.h"

namespace sterna {

/// Layers of the program's last function, by the scopes of its nodes: "layers.3/attn_q" is in layer 3.
std::int64_t num_layers(const Program& program);

/// The parts before and from `first_layer` on. Each function of the first part ends with `send`, whose rows have all
/// that the second part reads, which begins with `receive`. Nodes keep their names; weights that both parts read are in
/// both, embedding tables in the first one only. Cut before fusion.
///
/// Throws ArgumentError unless 0 < first_layer < num_layers, and UnsupportedModelError for a program that encodes whole
/// texts, and where attention on one side reads keys that the other side stores.
std::pair<Program, Program> split_layers(const Program& program, std::int64_t first_layer);

}  // namespace sterna
