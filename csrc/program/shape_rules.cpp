#include "program/shape_rules.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "program/op_table.h"

namespace sterna {

namespace {

const Value& operand(const Program& program, const Node& node, std::string_view role) {
  return program.value(node.input(role));
}

bool is_rows(Dim dim) { return dim.size == Dim::kTokens || dim.size == Dim::kOutputs; }

/// [T, ...] or [L, ...] of the given rank, everything behind the rows constant.
const Shape& rows(const Program& program, const Node& node, std::string_view role, std::size_t rank) {
  const Shape& shape = operand(program, node, role).shape;
  if (shape.size() != rank || !is_rows(shape[0])) {
    fail(node,
         std::string(role) + " has shape " + to_string(shape) + ", expected rows of rank " + std::to_string(rank));
  }
  return shape;
}

const Shape& tokens_of(const Program& program, const Node& node, std::string_view role, std::size_t rank) {
  const Shape& shape = rows(program, node, role, rank);
  if (shape[0].size != Dim::kTokens) fail(node, std::string(role) + " must have a row for every token");
  return shape;
}

const Shape& matrix(const Node& node, const Value& w) {
  if (w.shape.size() != 2) fail(node, "weight " + w.name + " has shape " + to_string(w.shape) + ", expected a matrix");
  return w.shape;
}

/// [experts, n, k]: one matrix for each expert.
const Shape& expert_matrices(const Node& node, const Value& w) {
  if (w.shape.size() != 3) {
    fail(node, "weight " + w.name + " has shape " + to_string(w.shape) + ", expected a matrix for each expert");
  }
  return w.shape;
}

void check_vector(const Node& node, std::string_view role, const Value& v, std::int64_t size) {
  if (v.shape != Shape{{size}}) {
    fail(node, std::string(role) + " " + v.name + " has shape " + to_string(v.shape) + ", expected [" +
                   std::to_string(size) + "]");
  }
}

void check_optional_vector(const Program& program, const Node& node, std::string_view role, std::int64_t size) {
  if (const ValueId id = node.input(role); id != kNoValue) check_vector(node, role, program.value(id), size);
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

/// One row of biases for each expert.
void check_expert_bias(const Program& program, const Node& node, std::string_view role, Dim experts, Dim size) {
  const ValueId id = node.input(role);
  if (id == kNoValue) return;
  const Value& bias = program.value(id);
  if (const Shape expected = {experts, size}; bias.shape != expected) {
    fail(node, std::string(role) + " " + bias.name + " has shape " + to_string(bias.shape) + ", expected " +
                   to_string(expected));
  }
}

void check_positive(const Node& node, std::string_view name) {
  if (!(node.number(name) > 0))
    fail(node, std::string(name) + " is " + std::to_string(node.number(name)) + ", must be above 0");
}

void check_features(const Node& node, std::int64_t features, const Value& w, std::int64_t expected) {
  if (features != expected) {
    fail(node,
         "x has " + std::to_string(features) + " features, weight " + w.name + " expects " + std::to_string(expected));
  }
}

/// A list of positive extents such as "9, 64".
std::vector<std::int64_t> extents(const Node& node, std::string_view name) {
  const std::string& text = node.text(name);
  std::vector<std::int64_t> list;
  const char* at = text.data();
  const char* const end = at + text.size();
  for (;;) {
    while (at != end && *at == ' ') ++at;
    std::int64_t extent = 0;
    const auto [next, error] = std::from_chars(at, end, extent);
    if (error != std::errc() || extent < 1 || extent > kMaxDim || list.size() == 64) {
      fail(node, std::string(name) + " is \"" + text + "\", expected positive extents");
    }
    list.push_back(extent);
    if (next == end) return list;
    if (*next != ',') fail(node, std::string(name) + " is \"" + text + "\", expected positive extents");
    at = next + 1;
  }
}

void check_rope(const Program& program, const Node& node, const std::string& prefix, std::int64_t head_dim) {
  check_positive(node, prefix + "theta");
  check_positive(node, prefix + "factor");
  check_positive(node, prefix + "beta_fast");
  check_positive(node, prefix + "beta_slow");
  check_positive(node, prefix + "attention_factor");
  const std::int64_t rotary_dim = node.integer(prefix + "rotary_dim");
  if (rotary_dim < 2 || rotary_dim > head_dim || rotary_dim % 2 != 0) {
    fail(node, "rotary_dim is " + std::to_string(rotary_dim) + ", must be even and from 2 to head_dim " +
                   std::to_string(head_dim));
  }
  const std::string& scaling = node.text(prefix + "scaling");
  if ((scaling == "yarn" || scaling == "longrope") && node.integer(prefix + "original_context") < 1) {
    fail(node, scaling + " needs original_context above 0");
  }
  if (scaling == "longrope" && (node.input("factors") == kNoValue || node.input("long_factors") == kNoValue)) {
    fail(node, "longrope needs factors and long_factors");
  }
  if (scaling != "longrope" && node.input("long_factors") != kNoValue) fail(node, "long_factors without longrope");
  check_optional_vector(program, node, "factors", rotary_dim / 2);
  check_optional_vector(program, node, "long_factors", rotary_dim / 2);
  const Value& positions = operand(program, node, "positions");
  if (positions.shape != Shape{{Dim::kTokens}}) fail(node, "positions must have shape [T]");
}

KvSlot stored_slot(const Program& program, const Node& node) {
  const std::int64_t layer = node.integer("layer");
  if (layer < 0) fail(node, "layer is " + std::to_string(layer));
  const Shape& k = tokens_of(program, node, "k", 3);
  const Shape& v = tokens_of(program, node, "v", 3);
  if (k[1] != v[1]) {
    fail(node, "k has " + std::to_string(k[1].size) + " heads, v " + std::to_string(v[1].size));
  }
  return {layer, k[1].size, k[2].size, v[2].size};
}

/// Where an attention node finds its keys and values: its own, or those that an earlier node of that layer has stored.
KvSlot attended_slot(const Program& program, const Node& node) {
  const std::int64_t layer = node.integer("layer");
  if (layer < 0) fail(node, "layer is " + std::to_string(layer));
  const std::int64_t latent = node.integer("latent");
  if (latent != 0 && (node.input("k") == kNoValue || node.input("v") != kNoValue)) {
    fail(node, "latent needs k and takes no v");
  }
  if (latent != 0) {
    const Shape& k = tokens_of(program, node, "k", 3);
    if (latent < 0 || latent > k[2].size) {
      fail(node, "latent is " + std::to_string(latent) + ", must be from 1 to head_dim " + std::to_string(k[2].size));
    }
    return {layer, k[1].size, k[2].size, latent, true};
  }
  if ((node.input("k") == kNoValue) != (node.input("v") == kNoValue)) fail(node, "k and v come together");
  if (node.input("k") != kNoValue) return stored_slot(program, node);
  for (const char* role : {"q_norm", "positions"}) {
    if (node.input(role) != kNoValue) fail(node, std::string(role) + " without k and v");
  }
  const auto slot = std::ranges::find(program.kv_slots, layer, &KvSlot::layer);
  if (slot == program.kv_slots.end()) fail(node, "layer " + std::to_string(layer) + " has no KV slot to share");
  return *slot;
}

void check_attention_options(const Program& program, const Node& node, std::int64_t heads) {
  for (const char* name : {"window", "chunk", "temperature.length", "temperature.offset"}) {
    if (node.integer(name) < 0) fail(node, std::string(name) + " is " + std::to_string(node.integer(name)));
  }
  for (const char* name : {"softcap", "max_alibi_bias", "temperature.scale"}) {
    if (node.number(name) < 0) fail(node, std::string(name) + " is " + std::to_string(node.number(name)));
  }
  if (!node.flag("causal") && node.integer("chunk") > 0) fail(node, "has chunks, which need causal attention");
  if (node.integer("window") > 0 && node.integer("chunk") > 0) fail(node, "has a window and chunks, can have one");
  if (node.number("temperature.scale") > 0 && node.integer("temperature.length") < 1) {
    fail(node, "temperature.scale needs temperature.length above 0");
  }
  check_positive(node, "scale");
  check_optional_vector(program, node, "sinks", heads);
  if (node.input("relative_bias") == kNoValue) return;
  const Value& bias = operand(program, node, "relative_bias");
  const Shape& buckets = matrix(node, bias);
  // At least one bucket for single distances and one beyond them, on each side.
  const std::int64_t fewest = node.flag("causal") ? 2 : 4;
  if (buckets[1].size != heads || buckets[0].size < fewest || buckets[0].size % fewest != 0) {
    fail(node, "relative_bias " + bias.name + " has shape " + to_string(buckets) + ", expected a multiple of " +
                   std::to_string(fewest) + " buckets for each of " + std::to_string(heads) + " heads");
  }
  const std::int64_t distance = node.integer("max_distance");
  if (distance <= buckets[0].size / fewest || distance > kMaxRelativeDistance) {
    fail(node, "max_distance is " + std::to_string(distance) + ", must be above " +
                   std::to_string(buckets[0].size / fewest) + " and at most " + std::to_string(kMaxRelativeDistance));
  }
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
    if (!biases.empty()) check_vector(node, "bias", program.value(biases[i]), nk[0].size);
    shapes.push_back({x[0], nk[0]});
  }
  check_optional_vector(program, node, "norm", x[1].size);
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
  check_optional_vector(program, node, "bias", nk[0].size);
  check_optional_vector(program, node, "norm", x[1].size);
  if (node.has("eps")) check_positive(node, "eps");
  return {{{Dim::kOutputs}, nk[0]}};
}

std::vector<Shape> rms_norm_shapes(const Program& program, const Node& node) {
  const std::size_t rank = operand(program, node, "x").shape.size();
  const Shape& x = rows(program, node, "x", rank == 3 ? 3 : 2);
  check_optional_vector(program, node, "w", x.back().size);
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
    if (!of_each_head) check_vector(node, "w", w, x.back().size);
    check_optional_vector(program, node, "bias", w.shape[0].size);
  } else if (node.input("bias") != kNoValue) {
    fail(node, "bias without w");
  }
  check_positive(node, "eps");
  return {x};
}

std::vector<Shape> rope_shapes(const Program& program, const Node& node) {
  const Shape& x = tokens_of(program, node, "x", 3);
  check_rope(program, node, "", x[2].size);
  return {x};
}

std::vector<Shape> attention_shapes(const Program& program, const Node& node) {
  const Shape& q = tokens_of(program, node, "q", 3);
  const KvSlot slot = attended_slot(program, node);
  if (q[2].size != slot.head_dim) {
    fail(node, "q has head_dim " + std::to_string(q[2].size) + ", k " + std::to_string(slot.head_dim));
  }
  if (q[1].size % slot.num_kv_heads != 0) {
    fail(node, std::to_string(q[1].size) + " query heads are not a multiple of " + std::to_string(slot.num_kv_heads) +
                   " key and value heads");
  }
  check_attention_options(program, node, q[1].size);
  if ((node.input("q_norm") == kNoValue) != (node.input("k_norm") == kNoValue)) {
    fail(node, "q_norm and k_norm come together");
  }
  check_optional_vector(program, node, "q_norm", q[2].size);
  check_optional_vector(program, node, "k_norm", q[2].size);
  if (node.has("eps")) check_positive(node, "eps");
  if (node.input("positions") != kNoValue) {
    check_rope(program, node, "rope.", q[2].size);
  } else {
    for (const char* role : {"factors", "long_factors"}) {
      if (node.input(role) != kNoValue) fail(node, std::string(role) + " without positions");
    }
  }
  return {{q[0], {q[1].size * slot.value_head_dim}}};
}

std::vector<Shape> lora_shapes(const Program& program, const Node& node) {
  const Shape& x = rows(program, node, "x", 2);
  const Shape& y = rows(program, node, "y", 2);
  const Value& a = operand(program, node, "a");
  const Value& b = operand(program, node, "b");
  const Shape& down = matrix(node, a);
  const Shape& up = matrix(node, b);
  if (x[0] != y[0]) fail(node, "x has shape " + to_string(x) + ", y " + to_string(y));
  check_features(node, x[1].size, a, down[1].size);
  if (up != Shape{y[1], down[0]}) {
    fail(node, "weight " + b.name + " has shape " + to_string(up) + ", expected " + to_string(Shape{y[1], down[0]}));
  }
  if (node.integer("adapter") < 0) fail(node, "adapter is " + std::to_string(node.integer("adapter")));
  return {y};
}

std::vector<Shape> store_kv_shapes(const Program& program, const Node& node) {
  stored_slot(program, node);
  return {operand(program, node, "k").shape};
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
  check_optional_vector(program, node, "bias", x[1].size);
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
  check_expert_bias(program, node, "gate_bias", enk[0], enk[1]);
  check_expert_bias(program, node, "up_bias", enk[0], enk[1]);
  check_expert_bias(program, node, "down_bias", enk[0], back[1]);
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

}  // namespace sterna
