/// TQ1_0 and TQ2_0, rounded exactly as gguf.quants does; the byte maps are in formats/.
#include <cmath>
#include <cstring>

#include "base/half.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 256;

/// Digits 0, 1, 2 for -1, 0, 1 times the largest magnitude, which is the scale; halves go away from zero.
std::uint16_t round_ternary(const float* x, std::uint8_t* digits) {
  float most = 0.0f;
  for (int j = 0; j < kBlock; ++j) most = std::fabs(x[j]) > most ? std::fabs(x[j]) : most;
  float inverse = most == 0.0f ? 0.0f : 1.0f / most;
  // The reciprocal of a subnormal may be infinite; numpy's codes are all 0 then, on x86.
  if (std::isinf(inverse)) inverse = 0.0f;
  for (int j = 0; j < kBlock; ++j) {
    const float y = x[j] * inverse;
    digits[j] = static_cast<std::uint8_t>(1 + (y >= 0.5f ? 1 : 0) - (y <= -0.5f ? 1 : 0));
  }
  return float_to_half(most);
}

/// kDigits digits to a byte: the byte q whose fraction q / 256 begins with them in base 3.
template <int kDigits>
std::uint8_t pack_digits(const std::uint8_t* digits, int stride) {
  unsigned value = 0;
  for (int n = 0; n < 5; ++n) value = 3 * value + (n < kDigits ? digits[n * stride] : 0u);
  return static_cast<std::uint8_t>((value * 256 + 242) / 243);
}

}  // namespace

void quantize_tq1_0(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; i += kBlock, out += 54) {
    std::uint8_t digits[kBlock];
    const std::uint16_t d = round_ternary(row + i, digits);
    for (int j = 0; j < 32; ++j) out[j] = pack_digits<5>(digits + j, 32);
    for (int j = 0; j < 16; ++j) out[32 + j] = pack_digits<5>(digits + 160 + j, 16);
    for (int j = 0; j < 4; ++j) out[48 + j] = pack_digits<4>(digits + 240 + j, 4);
    store_u16(out + 52, d);
  }
}

void quantize_tq2_0(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; i += kBlock, out += 66) {
    std::uint8_t digits[kBlock];
    const std::uint16_t d = round_ternary(row + i, digits);
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t* q = digits + 128 * h + j;
        out[32 * h + j] = static_cast<std::uint8_t>(q[0] | (q[32] << 2) | (q[64] << 4) | (q[96] << 6));
      }
    }
    store_u16(out + 64, d);
  }
}

}  // namespace sterna::quant
