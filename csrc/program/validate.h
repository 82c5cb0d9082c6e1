/// What makes a Program legal: a list of rules, run after tracing, after parsing and after every pass.
#pragma once

#include <string>
#include <string_view>
#include <unordered_set>

#include "program/program.h"

namespace sterna {

/// Throws ArgumentError with the first rule that is broken and the value or node that breaks it.
void validate(const Program& program);

/// A name of a value, node or function: 1 to 256 bytes without control characters.
bool is_name(std::string_view name);
/// Where a node was written: up to 256 bytes without control characters; may be empty.
bool is_source(std::string_view source);
/// What is wrong with a value on its own (name, shape, format), or an empty string.
std::string value_problem(const Value& value);
/// Whether a node writes keys and values: attention with k and v, or store_kv.
bool stores_kv(const Node& node);
/// The layers of store_kv, whose keys and values attention in another function reads (cross attention).
std::unordered_set<std::int64_t> cross_layers(const Program& program);
/// What such a node keeps in the cache.
KvSlot kv_slot(const Program& program, const Node& node);
/// Whether the op keeps a state of its sequence.
bool is_recurrent(std::string_view op);
/// What a recurrent node keeps.
StateSlot state_slot(const Program& program, const Node& node);

}  // namespace sterna
