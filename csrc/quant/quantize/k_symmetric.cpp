/// Q3_K and Q6_K; the byte maps are in formats/q3_k.cpp and formats/q6_k.cpp.
#include <cstring>

#include "quant/quantize/codes.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"
#include "quant/quantize/symmetric_block.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 256;

}  // namespace

void quantize_q3_k(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<16>(row, k, importance, [&](const auto& slab) {
    const auto fit = fit_symmetric<Codes3Bit, 32>(slab);
    std::uint8_t codes[kBlock];
    fit.codes(codes);
    for (int j = 0; j < 32; ++j) {
      unsigned third = 0;
      for (int g = 0; g < 8; ++g) third |= static_cast<unsigned>(codes[32 * g + j] >> 2) << g;
      out[j] = static_cast<std::uint8_t>(third);
    }
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t* q = codes + 128 * h + j;
        out[32 + 32 * h + j] =
            static_cast<std::uint8_t>((q[0] & 3) | ((q[32] & 3) << 2) | ((q[64] & 3) << 4) | ((q[96] & 3) << 6));
      }
    }
    std::uint8_t* scales = out + 96;
    std::memset(scales, 0, 12);
    for (int g = 0; g < 16; ++g) {
      const int scale = fit.scale(g) + 32;
      scales[g % 8] = static_cast<std::uint8_t>(scales[g % 8] | ((scale & 15) << (4 * (g / 8))));
      scales[8 + g % 4] = static_cast<std::uint8_t>(scales[8 + g % 4] | ((scale >> 4) << (2 * (g / 4))));
    }
    store_u16(out + 108, fit.d());
    out += 110;
  });
}

void quantize_q6_k(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<16>(row, k, importance, [&](const auto& slab) {
    const auto fit = fit_symmetric<Codes6Bit, 128>(slab);
    std::uint8_t codes[kBlock];
    fit.codes(codes);
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t* q = codes + 128 * h + j;
        out[64 * h + j] = static_cast<std::uint8_t>((q[0] & 15) | (q[64] << 4));
        out[64 * h + 32 + j] = static_cast<std::uint8_t>((q[32] & 15) | (q[96] << 4));
        out[128 + 32 * h + j] =
            static_cast<std::uint8_t>((q[0] >> 4) | ((q[32] >> 4) << 2) | ((q[64] >> 4) << 4) | ((q[96] >> 4) << 6));
      }
    }
    for (int g = 0; g < 16; ++g) out[192 + g] = static_cast<std::uint8_t>(fit.scale(g));
    store_u16(out + 208, fit.d());
    out += 210;
  });
}

}  // namespace sterna::quant
