/// An exponential of our own, so that no library decides about a bit; CPU and GPU share it.
#pragma once

#include <bit>
#include <cstdint>

namespace sterna {

/// exp(x) for x <= 0, within 2 ulp; 0 below -87.3 (no subnormals, so that flush-to-zero does not matter).
/// Cody-Waite reduction and the polynomial of Cephes' expf.
constexpr float exp_nonpositive(float x) {
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

}  // namespace sterna
