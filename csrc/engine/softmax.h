/// Sums of exponentials over a row of logits, in one fixed order, with an exponential of our own: the same bits
/// everywhere.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

namespace sterna {

/// exp(x) for x <= 0, within 2 ulp; 0 below -87.3 (no subnormals, so that flush-to-zero does not matter).
/// Cody-Waite reduction and the polynomial of Cephes' expf.
inline float exp_nonpositive(float x) {
  constexpr float kLowest = -87.3f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  // Masks instead of branches let compilers vectorise without leave to ignore floating-point traps.
  const std::uint32_t keep = x < kLowest ? 0u : ~0u;
  const float clamped =
      std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) & keep) | (std::bit_cast<std::uint32_t>(kLowest) & ~keep));
  const float shifted = clamped * 1.44269504088896341f + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * (r * r) + r + 1.0f;
  // The integer sits in the low mantissa bits of `shifted`.
  const auto exponent = (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound)) << 23;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(y) + exponent) & keep);
}

/// The largest value (-inf of an empty row), and whether all are finite.
struct RowExtent {
  float max;
  bool finite;
};
RowExtent row_extent(std::span<const float> row);

/// Index of the first element that equals `value`, or -1.
std::ptrdiff_t find_first(std::span<const float> row, float value);
/// Index of the first NaN or infinity, or -1.
std::ptrdiff_t find_non_finite(std::span<const float> row);

/// Sum of exp(x - max): sixteen lanes, then a fixed tree.
double sum_exp(std::span<const float> row, float max);

/// log(sum(exp(x))) of a row whose largest value is `max`. The logarithm is libm's, in double.
double log_sum_exp(std::span<const float> row, float max);

}  // namespace sterna
