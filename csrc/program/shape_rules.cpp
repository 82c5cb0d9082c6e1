#include "program/shape_rules.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "program/op_table.h"
#include "program/shape_checks.h"

namespace sterna {

namespace {

/// [experts, n, k]: one matrix for each expert.
const Shape& expert_matrices(const Node& node, const Value& w) {
  if (w.shape.size() != 3) {
    fail(node, "weight " + w.name + " has shape " + to_string(w.shape) + ", expected a matrix for each expert");
  }
  return w.shape;
}

void check_residual(const Program& program, const Node& node, const Shape& result) {
  const ValueId id = node.input("residual");
  if (id == kNoValue) return;
  const Value& residual = program.value(id);
  if (residual.shape != result) {
    fail(node,
         "residual " + residual.name + " has shape " + to_string(residual.shape) + ", the result " + to_string(result));
  }
}

/// A list of positive extents such as "9, 64", within the attribute of that name.
std::vector<std::int64_t> extents(const Node& node, std::string_view name, std::string_view text) {
  std::vector<std::int64_t> list;
  const char* at = text.data();
  const char* const end = at + text.size();
  for (;;) {
    while (at != end && *at == ' ') ++at;
    std::int64_t extent = 0;
    const auto [next, error] = std::from_chars(at, end, extent);
    const bool is_extent = error == std::errc() && extent >= 1 && extent <= kMaxDim && list.size() < 64;
    if (!is_extent || (next != end && *next != ',')) {
      fail(node, std::string(name) + " is \"" + node.text(name) + "\", expected positive extents");
    }
    list.push_back(extent);
    if (next == end) return list;
    at = next + 1;
  }
}

std::vector<std::int64_t> extents(const Node& node, std::string_view name) {
  return extents(node, name, node.text(name));
}

}  // namespace

std::vector<Shape> embed_shapes(const Program& program, const Node& node) {
  const Value& tokens = operand(program, node, "tokens");
  if (tokens.shape != Shape{{Dim::kTokens}}) fail(node, "tokens must have shape [T]");
  const Shape& w = matrix(node, operand(program, node, "w"));
  return {{tokens.shape[0], w[1]}};
}

std::vector<Shape> linear_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const std::vector<ValueId> weights = node.input_list("w");
  const std::vector<ValueId> biases = node.input_list("bias");
  if (!biases.empty() && biases.size() != weights.size()) {
    fail(node, std::to_string(biases.size()) + " biases for " + std::to_string(weights.size()) + " weights");
  }
  std::vector<Shape> shapes;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const Value& w = program.value(weights[i]);
    const Shape& nk = matrix(node, w);
    check_features(node, x[1].size, w, nk[1].size);
    if (!biases.empty()) check_shape(node, "bias", program.value(biases[i]), {nk[0]});
    shapes.push_back({x[0], nk[0]});
  }
  check_optional(program, node, "norm", {x[1]});
  if (node.has("eps")) check_positive(node, "eps");
  if (node.has("glu")) {
    if (shapes.size() != 2 || shapes[0] != shapes[1]) fail(node, "glu needs two weights of equal shape, gate and up");
    shapes.pop_back();
  }
  if (node.input("residual") != kNoValue && weights.size() != 1) fail(node, "residual needs exactly one weight");
  check_residual(program, node, shapes[0]);
  return shapes;
}

/// One matrix for each head.
std::vector<Shape> head_linear_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 3);
  const Value& w = operand(program, node, "w");
  if (w.shape.size() != 3 || w.shape[0] != x[1]) {
    fail(node, "weight " + w.name + " has shape " + to_string(w.shape) + ", expected a matrix for each of " +
                   std::to_string(x[1].size) + " heads");
  }
  check_features(node, x[2].size, w, w.shape[2].size);
  return {{x[0], x[1], w.shape[1]}};
}

std::vector<Shape> unembed_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const Value& w = operand(program, node, "w");
  const Shape& nk = matrix(node, w);
  check_features(node, x[1].size, w, nk[1].size);
  check_optional(program, node, "bias", {nk[0]});
  check_optional(program, node, "norm", {x[1]});
  if (node.has("eps")) check_positive(node, "eps");
  return {{{Dim::kOutputs}, nk[0]}};
}

std::vector<Shape> rms_norm_shapes(const Program& program, const Node& node) {
  const std::size_t rank = operand(program, node, "x").shape.size();
  const Shape& x = rows(program, node, "x", rank == 3 ? 3 : 2);
  check_optional(program, node, "w", {x.back()});
  check_residual(program, node, x);
  check_positive(node, "eps");
  return {x};
}

std::vector<Shape> layer_norm_shapes(const Program& program, const Node& node) {
  const std::size_t rank = operand(program, node, "x").shape.size();
  const Shape& x = rows(program, node, "x", rank == 3 ? 3 : 2);
  if (const ValueId id = node.input("w"); id != kNoValue) {
    const Value& w = program.value(id);
    const bool of_each_head = rank == 3 && w.shape == Shape{{x[1].size * x[2].size}};
    if (!of_each_head) check_shape(node, "w", w, {x.back()});
    check_optional(program, node, "bias", {w.shape[0]});
  } else if (node.input("bias") != kNoValue) {
    fail(node, "bias without w");
  }
  check_positive(node, "eps");
  return {x};
}

std::vector<Shape> lora_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const Shape& y = rows(program, node, "y", 2);
  if (x[0] != y[0]) fail(node, "x has shape " + to_string(x) + ", y " + to_string(y));
  const Value& a = operand(program, node, "a");
  const Shape& down = matrix(node, a);
  check_features(node, x[1].size, a, down[1].size);
  check_shape(node, "b", operand(program, node, "b"), {y[1], down[0]});
  check_count(node, "adapter", kMaxLayers - 1);
  return {y};
}

std::vector<Shape> glu_shapes(const Program& program, const Node& node) {
  const Shape& gate = rows(program, node, "gate", 2);
  const Shape& up = rows(program, node, "up", 2);
  if (gate != up) fail(node, "gate has shape " + to_string(gate) + ", up " + to_string(up));
  return {gate};
}

/// Ids of the chosen experts by rank, and their weights.
std::vector<Shape> route_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const std::int64_t used = node.integer("used");
  if (used < 1 || used > x[1].size) {
    fail(node,
         "used is " + std::to_string(used) + ", must be from 1 to the number of experts " + std::to_string(x[1].size));
  }
  if (x[1].size > kMaxMatrices) {
    fail(node,
         "chooses from " + std::to_string(x[1].size) + " experts, must be at most " + std::to_string(kMaxMatrices));
  }
  check_optional(program, node, "bias", {x[1]});
  check_positive(node, "scale");
  const std::int64_t groups = node.integer("groups");
  const std::int64_t groups_used = node.integer("groups_used");
  if (groups < 1 || x[1].size % groups != 0) {
    fail(node,
         "groups is " + std::to_string(groups) + ", must divide the number of experts " + std::to_string(x[1].size));
  }
  const std::int64_t group_size = x[1].size / groups;
  if (groups_used < 1 || groups_used > groups || groups_used * group_size < used) {
    fail(node, "groups_used is " + std::to_string(groups_used) + ", must be from 1 to groups " +
                   std::to_string(groups) + " and hold " + std::to_string(used) + " experts");
  }
  if (node.text("group_scores") == "two_best" && group_size < 2) fail(node, "two_best needs groups of 2 experts");
  return {{x[0], {used}}, {x[0], {used}}};
}

std::vector<Shape> expert_glu_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const Shape& experts = rows(program, node, "experts", 2);
  const Shape& weights = rows(program, node, "weights", 2);
  if (experts != weights || experts[0] != x[0]) {
    fail(node, "experts have shape " + to_string(experts) + ", weights " + to_string(weights) + ", x " + to_string(x));
  }
  const Value& gate = operand(program, node, "gate");
  const Value& up = operand(program, node, "up");
  const Value& down = operand(program, node, "down");
  const Shape& enk = expert_matrices(node, gate);
  if (up.shape != enk) fail(node, "gate has shape " + to_string(enk) + ", up " + to_string(up.shape));
  const Shape& back = expert_matrices(node, down);
  if (back[0] != enk[0] || back[2] != enk[1]) {
    fail(node, "gate has shape " + to_string(enk) + ", down " + to_string(back));
  }
  check_features(node, x[1].size, gate, enk[2].size);
  if (experts[1].size > enk[0].size) {
    fail(node, "uses " + std::to_string(experts[1].size) + " of " + std::to_string(enk[0].size) + " experts");
  }
  check_optional(program, node, "gate_bias", {enk[0], enk[1]});
  check_optional(program, node, "up_bias", {enk[0], enk[1]});
  check_optional(program, node, "down_bias", {enk[0], back[1]});
  const Shape shape = {x[0], back[1]};
  check_residual(program, node, shape);
  return {shape};
}

std::vector<Shape> same_shapes(const Program& program, const Node& node) {
  const Shape& x = operand(program, node, "x").shape;
  return {rows(program, node, "x", x.size() == 3 ? 3 : 2)};
}

std::vector<Shape> clamp_shapes(const Program& program, const Node& node) {
  check_positive(node, "limit");
  return same_shapes(program, node);
}

std::vector<Shape> binary_shapes(const Program& program, const Node& node) {
  const Value& a = operand(program, node, "a");
  const Value& b = operand(program, node, "b");
  const Shape& shape = rows(program, node, "a", a.shape.size() == 3 ? 3 : 2);
  const bool per_row = node.op == "mul" && shape.size() == 2 && b.shape == Shape{shape[0], {1}};
  const bool fits = b.kind == ValueKind::kWeight ? b.shape == Shape{shape.back()} || b.shape == Shape{{1}}
                                                 : b.shape == shape || per_row;
  if (!fits) {
    fail(node, a.name + " has shape " + to_string(shape) + ", " + b.name + " " + to_string(b.shape) +
                   (b.kind == ValueKind::kWeight ? "; a weight must have one element or one for each feature" : ""));
  }
  return {shape};
}

std::vector<Shape> reshape_shapes(const Program& program, const Node& node) {
  const Shape& x = operand(program, node, "x").shape;
  rows(program, node, "x", x.size() == 3 ? 3 : 2);
  std::int64_t features = x[1].size;
  if (x.size() == 3) features *= x[2].size;
  Shape shape = {x[0]};
  std::int64_t product = 1;
  for (const std::int64_t extent : extents(node, "dims")) {
    product *= extent;
    if (product > features) break;
    shape.push_back({extent});
  }
  if (product != features || shape.size() > 3) {
    fail(node, "x has " + std::to_string(features) + " features per row, they do not form [" + node.text("dims") + "]");
  }
  return {shape};
}

std::vector<Shape> split_shapes(const Program& program, const Node& node) {
  const Shape& x = operand(program, node, "x").shape;
  rows(program, node, "x", x.size() == 3 ? 3 : 2);
  std::vector<Shape> shapes;
  std::int64_t total = 0;
  for (const std::int64_t extent : extents(node, "sizes")) {
    total += extent;
    shapes.push_back(x);
    shapes.back().back() = {extent};
  }
  if (total != x.back().size) {
    fail(node, "sizes " + node.text("sizes") + " add up to " + std::to_string(total) + ", x has " +
                   std::to_string(x.back().size) + " features");
  }
  return shapes;
}

std::vector<Shape> concat_shapes(const Program& program, const Node& node) {
  const std::vector<ValueId> parts = node.input_list("x");
  Shape shape = program.value(parts[0]).shape;
  if ((shape.size() != 2 && shape.size() != 3) || !is_rows(shape[0])) fail(node, "x has shape " + to_string(shape));
  std::int64_t total = 0;
  for (const ValueId id : parts) {
    const Value& part = program.value(id);
    Shape expected = shape;
    if (part.shape.size() == shape.size()) expected.back() = part.shape.back();
    if (part.shape != expected) {
      fail(node, part.name + " has shape " + to_string(part.shape) + ", the first part " + to_string(shape));
    }
    total += part.shape.back().size;
    if (total > kMaxDim) fail(node, "the result is too large");
  }
  shape.back() = {total};
  return {shape};
}

std::vector<Shape> pool_shapes(const Program& program, const Node& node) {
  Shape shape = tokens_of(program, node, "x", 2);
  shape[0] = {Dim::kOutputs};
  return {shape};
}

std::vector<Shape> take_rows_shapes(const Program& program, const Node& node) {
  const Shape& x = operand(program, node, "x").shape;
  Shape shape = tokens_of(program, node, "x", x.size() == 3 ? 3 : 2);
  shape[0] = {Dim::kOutputs};
  return {shape};
}

std::vector<Shape> send_shapes(const Program& program, const Node& node) {
  std::int64_t features = 0;
  for (const ValueId id : node.input_list("x")) {
    const Value& x = program.value(id);
    if ((x.shape.size() != 2 && x.shape.size() != 3) || x.shape[0].size != Dim::kTokens) {
      fail(node, x.name + " has shape " + to_string(x.shape) + ", expected a row for every token, of rank 2 or 3");
    }
    features += x.shape[1].size * (x.shape.size() == 3 ? x.shape[2].size : 1);
    if (features > kMaxDim) fail(node, "the result is too large");
  }
  return {{{Dim::kTokens}, {features}}};
}

std::vector<Shape> receive_shapes(const Program&, const Node& node) {
  std::vector<Shape> shapes;
  std::string_view rest = node.text("shapes");
  std::int64_t features = 0;
  for (;;) {
    const std::string_view text = rest.substr(0, rest.find(';'));
    Shape& shape = shapes.emplace_back(Shape{{Dim::kTokens}});
    std::int64_t row = 1;
    for (const std::int64_t extent : extents(node, "shapes", text)) {
      shape.push_back({extent});
      row = extent > kMaxDim / row ? kMaxDim : row * extent;
    }
    if (shape.size() > 3) fail(node, "shapes has " + to_string(shape) + ", of rank 2 or 3 only");
    features += row;
    if (features > kMaxDim) fail(node, "the results are too large");
    if (text.size() == rest.size()) return shapes;
    rest.remove_prefix(text.size() + 1);
  }
}

}  // namespace sterna
