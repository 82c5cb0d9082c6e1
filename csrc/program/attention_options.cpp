#include "program/attention_options.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>

namespace sterna {

namespace {

/// ln n to about 2^-52, from exact arithmetic and one series, so that no C library decides about a bit.
double natural_logarithm(std::int64_t n) {
  // n = m 2^e with m within [0.7, 1.42]; ln m = 2 atanh((m - 1) / (m + 1)), the argument below 0.18.
  const int e = std::bit_width(static_cast<std::uint64_t>(n)) - 1;
  double m = static_cast<double>(n) / static_cast<double>(std::int64_t{1} << e);
  double powers = e;
  if (m > 1.4142135623730951) {
    m *= 0.5;
    powers += 1;
  }
  const double t = (m - 1.0) / (m + 1.0);
  const double square = t * t;
  double sum = 0.0;
  for (int k = 21; k >= 1; k -= 2) sum = sum * square + 1.0 / k;
  return powers * 0.6931471805599453 + 2.0 * t * sum;
}

}  // namespace

std::vector<float> alibi_slopes(std::int64_t num_heads, double max_bias) {
  const auto power = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(num_heads)));
  std::vector<float> slopes;
  for (std::int64_t head = 0; head < num_heads; ++head) {
    const std::int64_t half_steps = head < power ? 2 * (head + 1) : 2 * (head - power) + 1;
    slopes.push_back(
        static_cast<float>(std::exp2(-max_bias * static_cast<double>(half_steps) / static_cast<double>(2 * power))));
  }
  return slopes;
}

float AttentionTemperature::at(std::int64_t position) const {
  if (scale == 0.0) return 1.0f;
  return static_cast<float>(1.0 + scale * natural_logarithm((position + offset) / length + 1));
}

AttentionTemperature attention_temperature(const Node& node) {
  return {node.number("temperature.scale"), node.integer("temperature.length"), node.integer("temperature.offset")};
}

std::int64_t relative_bucket(std::int64_t offset, bool causal, std::int64_t num_buckets, std::int64_t max_distance) {
  const std::int64_t side = causal ? num_buckets : num_buckets / 2;
  const std::int64_t first = causal || offset <= 0 ? 0 : side;
  const std::int64_t distance = causal ? std::max<std::int64_t>(-offset, 0) : std::abs(offset);
  const std::int64_t single = side / 2;
  if (distance < single) return first + distance;
  const double share = (natural_logarithm(distance) - natural_logarithm(single)) /
                       (natural_logarithm(max_distance) - natural_logarithm(single));
  // A little more than rounding: where the logarithms' ratio is a whole number, the bucket begins.
  const auto further = static_cast<std::int64_t>(share * static_cast<double>(side - single) + 1e-6);
  return first + std::min(single + further, side - 1);
}

}  // namespace sterna
