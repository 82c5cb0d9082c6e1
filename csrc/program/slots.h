/// What nodes keep of their sequences from one batch to the next: keys and values, or a state.
#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_set>

#include "program/program.h"

namespace sterna {

/// Whether a node writes keys and values: attention with k and v, or store_kv.
bool stores_kv(const Node& node);
/// The layers of store_kv, whose keys and values attention in another function reads (cross attention).
std::unordered_set<std::int64_t> cross_layers(const Program& program);
/// What such a node, whose operands were checked, keeps in the cache.
KvSlot kv_slot(const Program& program, const Node& node);
/// Whether the op keeps a state of its sequence.
bool is_recurrent(std::string_view op);
/// What a recurrent node keeps.
StateSlot state_slot(const Program& program, const Node& node);

}  // namespace sterna
