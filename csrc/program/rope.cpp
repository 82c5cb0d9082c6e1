#include "program/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace sterna {

RopeSpec rope_spec(const Node& node, std::string_view prefix) {
  const auto name = [prefix](std::string_view attribute) { return std::string(prefix) + std::string(attribute); };
  RopeSpec spec;
  spec.theta = node.number(name("theta"));
  spec.rotary_dim = node.integer(name("rotary_dim"));
  spec.style = node.text(name("style")) == "interleaved" ? RopeStyle::kInterleaved : RopeStyle::kHalves;
  const std::string& scaling = node.text(name("scaling"));
  if (scaling == "linear") spec.scaling = RopeScaling::kLinear;
  if (scaling == "yarn") spec.scaling = RopeScaling::kYarn;
  if (scaling == "longrope") spec.scaling = RopeScaling::kLongrope;
  spec.factor = node.number(name("factor"));
  spec.original_context = node.integer(name("original_context"));
  spec.beta_fast = node.number(name("beta_fast"));
  spec.beta_slow = node.number(name("beta_slow"));
  spec.truncate = node.flag(name("truncate"));
  spec.attention_factor = node.number(name("attention_factor"));
  return spec;
}

namespace {

/// The pair whose wave turns `rotations` times over the original context (YaRN, arXiv:2309.00071, section 3.2).
double pair_of_rotations(const RopeSpec& spec, double rotations) {
  const double context = static_cast<double>(spec.original_context);
  return static_cast<double>(spec.rotary_dim) * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(spec.theta));
}

}  // namespace

std::vector<float> inverse_frequencies(const RopeSpec& spec, std::span<const float> factors) {
  const double dim = static_cast<double>(spec.rotary_dim);
  double low = 0;
  double high = 0;
  if (spec.scaling == RopeScaling::kYarn) {
    low = pair_of_rotations(spec, spec.beta_fast);
    high = pair_of_rotations(spec, spec.beta_slow);
    low = std::max(spec.truncate ? std::floor(low) : low, 0.0);
    high = std::min(spec.truncate ? std::ceil(high) : high, dim - 1.0);
    if (low == high) high += 0.001;
  }
  std::vector<float> frequencies(static_cast<std::size_t>(spec.rotary_dim / 2));
  for (std::size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = 1.0 / std::pow(spec.theta, 2.0 * static_cast<double>(i) / dim);
    if (spec.scaling == RopeScaling::kLinear) frequency /= spec.factor;
    if (spec.scaling == RopeScaling::kYarn) {
      const double interpolated = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      frequency = frequency / spec.factor * interpolated + frequency * (1.0 - interpolated);
    }
    if (!factors.empty()) frequency /= static_cast<double>(factors[i]);
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

std::int64_t longrope_context(const Program& program) {
  std::int64_t context = 0;
  for (const Function& function : program.functions) {
    for (const Node& node : function.nodes) {
      if (node.input("long_factors") == kNoValue) continue;
      const std::int64_t own = rope_spec(node, node.op == "rope" ? "" : "rope.").original_context;
      context = context == 0 ? own : std::min(context, own);
    }
  }
  return context;
}

}  // namespace sterna
