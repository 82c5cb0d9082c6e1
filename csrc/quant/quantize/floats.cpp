/// F32, F16 and BF16 from floats: rounding to the nearest, ties to even.
#include <bit>
#include <cstring>

#include "base/half.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"

namespace sterna::quant {

void quantize_f32(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) store_u32(out + 4 * i, std::bit_cast<std::uint32_t>(row[i]));
}

void quantize_f16(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) store_u16(out + 2 * i, float_to_half(row[i]));
}

void quantize_bf16(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; ++i) {
    const auto bits = std::bit_cast<std::uint32_t>(row[i]);
    store_u16(out + 2 * i, static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16));
  }
}

}  // namespace sterna::quant
