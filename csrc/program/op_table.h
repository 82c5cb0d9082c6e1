/// The op vocabulary: roles, attributes and shape rules of every op, in one explicit array. The only place that checks
/// them.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "program/program.h"

namespace sterna {

enum class RoleKind {
  kResult,        // what a node computed
  kWeight,        // a tensor of the file
  kFloats,        // a tensor of the file that is read as plain floats, whatever its rank: never packed for matmuls
  kFloatColumns,  // the same, of a matrix whose columns are to lie as rows
  kInput,         // an array of the batch
  kAny,           // a result or a weight
};
enum class RoleCount { kOne, kOptional, kOneOrMore, kZeroOrMore };

struct RoleSpec {
  std::string_view name;
  RoleKind kind = RoleKind::kResult;
  RoleCount count = RoleCount::kOne;
};

enum class AttributeNeed {
  kRequired,
  kDefault,  // filled in with `value` when not given
  kAbsent,   // not there unless given
};

struct AttributeSpec {
  std::string_view name;
  AttributeNeed need = AttributeNeed::kRequired;
  Attribute value;                        // the default; where there is none, a value of the right type
  std::vector<std::string_view> choices;  // of text attributes; empty: any text
  std::string_view role;                  // not empty: belongs to a node that has this role, and to no other
};

struct OpSpec {
  std::string_view name;
  std::vector<RoleSpec> roles;
  std::vector<AttributeSpec> attributes;
  /// Shapes of the outputs, one per output. Roles and attributes have been checked. Throws ArgumentError.
  std::vector<Shape> (*shapes)(const Program&, const Node&);
};

/// The largest constant extent, and the most numbers in a row of a result; products of two never overflow.
constexpr std::int64_t kMaxDim = (std::int64_t{1} << 31) - 1;
/// The most matrices of one weight: the experts of a layer, or its heads.
constexpr std::int64_t kMaxMatrices = 4096;
/// The most layers, and the most adapters.
constexpr std::int64_t kMaxLayers = 1 << 16;
/// The farthest distance with a bucket of its own in a relative bias.
constexpr std::int64_t kMaxRelativeDistance = 1 << 14;
/// The most tokens that a convolution sees, the row's own included; those of models see 4 or fewer.
constexpr std::int64_t kMaxConvTokens = 64;

std::span<const OpSpec> op_table();
/// The entry of that name, or null.
const OpSpec* find_op(std::string_view name);
/// The entry of an op's attribute, or null.
const AttributeSpec* find_attribute(const OpSpec& op, std::string_view name);
/// Shapes of the node's results, after checking its roles, its attributes and the shapes of its operands. The message
/// of the ArgumentError starts with op and node name and ends with the source.
std::vector<Shape> infer_shapes(const Program& program, const Node& node);
/// Fills in defaults and turns integers given for numbers into numbers. Unknown ops and attributes are left for
/// infer_shapes.
void complete_attributes(Node& node);

[[noreturn]] void fail(const Node& node, const std::string& problem);

}  // namespace sterna
