/// What makes a Program legal: a list of rules, run after tracing, after parsing and after every pass.
#pragma once

#include <string>
#include <string_view>

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

}  // namespace sterna
