/// F32, F16 and BF16 from floats: rounding to the nearest, ties to even.
#include <bit>

#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

/// float_to_half of a float that does not overflow, without branches, so that the loop over it vectorises.
std::uint16_t finite_to_half(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  const std::uint32_t normal = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Beside 0.5 a float's unit is that of the subnormal halves, 2^-24: the addition rounds.
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  return static_cast<std::uint16_t>((magnitude < 0x38800000u ? subnormal : normal) | ((bits >> 16) & 0x8000u));
}

}  // namespace

void quantize_f32(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) store_u32(out + 4 * i, std::bit_cast<std::uint32_t>(row[i]));
}

void quantize_f16(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) store_u16(out + 2 * i, finite_to_half(row[i]));
}

void quantize_bf16(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(row[i]);
    store_u16(out + 2 * i, static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16));
  }
}

}  // namespace sterna::quant
