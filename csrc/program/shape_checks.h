/// Checks that the shape rules share. Messages name the node, the role and what it has; all throw ArgumentError.
#pragma once

#include <cstdint>
#include <string_view>

#include "program/program.h"

namespace sterna {

const Value& operand(const Program& program, const Node& node, std::string_view role);

bool is_rows(Dim dim);
/// [T, ...] or [L, ...] of the given rank, everything behind the rows constant.
const Shape& rows(const Program& program, const Node& node, std::string_view role, std::size_t rank);
/// [T, ...] of the given rank.
const Shape& tokens_of(const Program& program, const Node& node, std::string_view role, std::size_t rank);
const Shape& matrix(const Node& node, const Value& w);

void check_shape(const Node& node, std::string_view role, const Value& value, const Shape& expected);
/// The same for a role that may have no operand.
void check_optional(const Program& program, const Node& node, std::string_view role, const Shape& expected);
/// Whether rows of x of that size fit the weight's.
void check_features(const Node& node, std::int64_t features, const Value& w, std::int64_t expected);

void check_positive(const Node& node, std::string_view name);
/// An integer attribute from 0 to `most`.
void check_count(const Node& node, std::string_view name, std::int64_t most);
void check_layer(const Node& node);

}  // namespace sterna
