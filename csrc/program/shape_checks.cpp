#include "program/shape_checks.h"

#include <string>

#include "program/op_table.h"

namespace sterna {

const Value& operand(const Program& program, const Node& node, std::string_view role) {
  return program.value(node.input(role));
}

bool is_rows(Dim dim) { return dim.size == Dim::kTokens || dim.size == Dim::kOutputs; }

const Shape& rows(const Program& program, const Node& node, std::string_view role, std::size_t rank) {
  const Shape& shape = operand(program, node, role).shape;
  if (shape.size() != rank || !is_rows(shape[0])) {
    fail(node,
         std::string(role) + " has shape " + to_string(shape) + ", expected rows of rank " + std::to_string(rank));
  }
  return shape;
}

const Shape& tokens_of(const Program& program, const Node& node, std::string_view role, std::size_t rank) {
  const Shape& shape = operand(program, node, role).shape;
  if (shape.size() != rank || shape[0].size != Dim::kTokens) {
    fail(node, std::string(role) + " has shape " + to_string(shape) + ", expected a row for every token, of rank " +
                   std::to_string(rank));
  }
  return shape;
}

const Shape& matrix(const Node& node, const Value& w) {
  if (w.shape.size() != 2) fail(node, "weight " + w.name + " has shape " + to_string(w.shape) + ", expected a matrix");
  return w.shape;
}

void check_shape(const Node& node, std::string_view role, const Value& value, const Shape& expected) {
  if (value.shape != expected) {
    fail(node, std::string(role) + " " + value.name + " has shape " + to_string(value.shape) + ", expected " +
                   to_string(expected));
  }
}

void check_optional(const Program& program, const Node& node, std::string_view role, const Shape& expected) {
  if (const ValueId id = node.input(role); id != kNoValue) check_shape(node, role, program.value(id), expected);
}

void check_features(const Node& node, std::int64_t features, const Value& w, std::int64_t expected) {
  if (features != expected) {
    fail(node,
         "x has " + std::to_string(features) + " features, weight " + w.name + " expects " + std::to_string(expected));
  }
}

void check_positive(const Node& node, std::string_view name) {
  if (!(node.number(name) > 0)) {
    fail(node, std::string(name) + " is " + std::to_string(node.number(name)) + ", must be above 0");
  }
}

void check_count(const Node& node, std::string_view name, std::int64_t most) {
  const std::int64_t value = node.integer(name);
  if (value < 0 || value > most) {
    fail(node, std::string(name) + " is " + std::to_string(value) + ", must be from 0 to " + std::to_string(most));
  }
}

void check_layer(const Node& node) { check_count(node, "layer", kMaxLayers - 1); }

}  // namespace sterna
