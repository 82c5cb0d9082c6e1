/// Rotary position embedding: the inverse frequencies that a rope's attributes describe (RoFormer, arXiv:2104.09864).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "program/program.h"

namespace sterna {

enum class RopeStyle {
  kHalves,       // element i turns with i + rotary_dim / 2
  kInterleaved,  // element 2 i turns with 2 i + 1
};
enum class RopeScaling { kNone, kLinear, kYarn, kLongrope };

struct RopeSpec {
  double theta = 10000.0;
  std::int64_t rotary_dim = 0;  // the first elements of a head turn, the others stay
  RopeStyle style = RopeStyle::kHalves;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;
  std::int64_t original_context = 0;  // yarn, and longrope: longer sequences turn with the long factors
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;           // yarn: the ends of the ramp are whole pairs
  double attention_factor = 1.0;  // cos and sin are multiplied by it

  bool operator==(const RopeSpec&) const = default;
};

/// The spec of a rope node (prefix "") or of an attention node with rope folded in (prefix "rope.").
RopeSpec rope_spec(const Node& node, std::string_view prefix);

/// Angle per position of each of the rotary_dim / 2 pairs: computed in double, rounded to float. Linear divides by
/// `factor`; yarn blends as transformers' _compute_yarn_parameters does. `factors` is empty or has one divisor per pair
/// (rope_freqs.weight: the llama3 scaling, worked out by the converter; one of two sets of longrope, arXiv:2402.13753).
/// The angle of a row is float(position) * frequency, rounded to float.
std::vector<float> inverse_frequencies(const RopeSpec& spec, std::span<const float> factors);

/// Sequences longer than this turn with the long factors of the program's ropes; 0: there are none.
std::int64_t longrope_context(const Program& program);

}  // namespace sterna
