/// Shape rules of the recurrent ops: what a node keeps of its sequence is as large as its operands say.
#include <string>

#include "program/op_table.h"
#include "program/shape_checks.h"
#include "program/shape_rules.h"

namespace sterna {

namespace {

void check_multiple(const Node& node, std::int64_t heads, const char* what, std::int64_t groups) {
  if (heads % groups != 0) {
    fail(node, std::to_string(heads) + " heads are not a multiple of " + std::to_string(groups) + " " + what);
  }
}

/// The state of a sequence, [heads * rows, columns].
void check_state(const Node& node, std::int64_t heads, std::int64_t rows, std::int64_t columns) {
  if (rows > kMaxDim / heads || columns > kMaxDim / (heads * rows)) {
    fail(node, "a state of " + std::to_string(heads) + " x " + std::to_string(rows) + " x " + std::to_string(columns) +
                   " is too large");
  }
}

}  // namespace

std::vector<Shape> short_conv_shapes(const Program& program, const Node& node) {
  const Shape& x = tokens_of(program, node, "x", 2);
  const Value& w = operand(program, node, "w");
  if (w.shape.size() != 2 || w.shape[0] != x[1] || w.shape[1].size < 2 || w.shape[1].size > kMaxConvTokens) {
    fail(node, "w " + w.name + " has shape " + to_string(w.shape) + ", expected " + std::to_string(x[1].size) +
                   " channels of 2 to " + std::to_string(kMaxConvTokens) + " tokens");
  }
  check_optional(program, node, "bias", {x[1]});
  check_layer(node);
  check_state(node, 1, w.shape[1].size - 1, x[1].size);
  return {x};
}

std::vector<Shape> ssm_scan_shapes(const Program& program, const Node& node) {
  const Shape& x = tokens_of(program, node, "x", 3);
  const Shape& b = tokens_of(program, node, "b", 3);
  check_shape(node, "dt", operand(program, node, "dt"), {x[0], x[1]});
  check_shape(node, "c", operand(program, node, "c"), b);
  check_multiple(node, x[1].size, "groups of b and c", b[1].size);
  const Shape per_head = {x[1]};
  const Shape column = {x[1], {1}};
  const Value& a = operand(program, node, "a");
  const bool per_channel = x[2].size == 1 && b[1].size == 1 && a.shape == Shape{x[1], b[2]};
  if (a.shape != column && !per_channel) check_shape(node, "a", a, per_head);
  if (const Value& d = operand(program, node, "d"); d.shape != column) check_shape(node, "d", d, per_head);
  check_layer(node);
  check_state(node, x[1].size, x[2].size, b[2].size);
  return {{x[0], {x[1].size * x[2].size}}};
}

std::vector<Shape> delta_rule_shapes(const Program& program, const Node& node) {
  const Shape& q = tokens_of(program, node, "q", 3);
  const Shape& v = tokens_of(program, node, "v", 3);
  check_shape(node, "k", operand(program, node, "k"), q);
  check_multiple(node, v[1].size, "heads of q and k", q[1].size);
  check_shape(node, "g", operand(program, node, "g"), {v[0], v[1]});
  check_shape(node, "beta", operand(program, node, "beta"), {v[0], v[1]});
  check_layer(node);
  check_state(node, v[1].size, q[2].size, v[2].size);
  return {{v[0], {v[1].size * v[2].size}}};
}

}  // namespace sterna
