/// MXFP4, rounded exactly as gguf.quants does; the byte map is in formats/mxfp4.cpp.
#include <bit>
#include <cmath>

#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 32;

/// floor(log2(x)) of a positive float as single precision gives it: the logarithm of a number just below a power of two
/// rounds up to a whole number.
int floor_log2(float x) { return static_cast<int>(std::floor(static_cast<float>(std::log2(static_cast<double>(x))))); }

/// 2^(e - 128).
float scale_of(std::uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
}

}  // namespace

void quantize_mxfp4(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  // Magnitudes of E2M1, doubled, and the middles between them; the smaller one wins a tie.
  constexpr float kMiddles[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
  for (std::size_t i = 0; i < k; i += kBlock, out += 17) {
    const float* x = row + i;
    float most = 0.0f;
    for (int j = 0; j < kBlock; ++j) most = std::fabs(x[j]) > most ? std::fabs(x[j]) : most;
    // Below 2^-125 the exponent wraps around, and the huge scale makes all codes zero.
    const auto e = static_cast<std::uint8_t>(most > 0.0f ? floor_log2(most) - 2 + 127 : 0);
    const float d = scale_of(e);
    std::uint8_t codes[kBlock];
    for (int j = 0; j < kBlock; ++j) {
      const float magnitude = std::fabs(x[j]);
      int code = 0;
      for (const float middle : kMiddles) code += magnitude > d * middle ? 1 : 0;
      codes[j] = static_cast<std::uint8_t>(code == 0 || x[j] >= 0.0f ? code : code + 8);
    }
    out[0] = e;
    store_codes_of_32(codes, nullptr, out + 1);
  }
}

}  // namespace sterna::quant
