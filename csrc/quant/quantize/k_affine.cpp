/// Q2_K, Q4_K and Q5_K; the byte maps are in formats/q2_k.cpp and formats/q4_k.cpp.
#include "quant/quantize/affine_block.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 256;

/// The 12 bytes of eight scales and eight minima of six bits.
template <class Fit>
void store_scales(const Fit& fit, std::uint8_t* out) {
  for (int g = 0; g < 4; ++g) {
    out[g] = static_cast<std::uint8_t>(fit.scale(g) | ((fit.scale(g + 4) >> 4) << 6));
    out[g + 4] = static_cast<std::uint8_t>(fit.min(g) | ((fit.min(g + 4) >> 4) << 6));
    out[g + 8] = static_cast<std::uint8_t>((fit.scale(g + 4) & 15) | ((fit.min(g + 4) & 15) << 4));
  }
}

/// d, dmin and scales of Q4_K and Q5_K, 16 bytes, and the codes [256].
template <class S>
void fit_6_bit_scales(const S& slab, float levels, std::uint8_t* out, std::uint8_t* codes) {
  const auto fit = fit_affine<63>(slab, levels);
  store_u16(out, fit.d());
  store_u16(out + 2, fit.dmin());
  store_scales(fit, out + 4);
  fit.codes(codes);
}

void store_nibbles(const std::uint8_t* codes, std::uint8_t* qs) {
  for (int c = 0; c < 4; ++c) {
    const std::uint8_t* low = codes + 64 * c;
    for (int j = 0; j < 32; ++j) qs[32 * c + j] = static_cast<std::uint8_t>((low[j] & 15) | (low[j + 32] << 4));
  }
}

}  // namespace

void quantize_q2_k(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<16>(row, k, importance, [&](const auto& slab) {
    const auto fit = fit_affine<15>(slab, 3.0f);
    std::uint8_t codes[kBlock];
    fit.codes(codes);
    for (int g = 0; g < 16; ++g) out[g] = static_cast<std::uint8_t>(fit.scale(g) | (fit.min(g) << 4));
    for (int h = 0; h < 2; ++h) {
      for (int j = 0; j < 32; ++j) {
        const std::uint8_t* q = codes + 128 * h + j;
        out[16 + 32 * h + j] = static_cast<std::uint8_t>(q[0] | (q[32] << 2) | (q[64] << 4) | (q[96] << 6));
      }
    }
    store_u16(out + 80, fit.d());
    store_u16(out + 82, fit.dmin());
    out += 84;
  });
}

void quantize_q4_k(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<8>(row, k, importance, [&](const auto& slab) {
    std::uint8_t codes[kBlock];
    fit_6_bit_scales(slab, 15.0f, out, codes);
    store_nibbles(codes, out + 16);
    out += 144;
  });
}

void quantize_q5_k(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<8>(row, k, importance, [&](const auto& slab) {
    std::uint8_t codes[kBlock];
    fit_6_bit_scales(slab, 31.0f, out, codes);
    for (int j = 0; j < 32; ++j) {
      unsigned fifth = 0;
      for (int g = 0; g < 8; ++g) fifth |= static_cast<unsigned>(codes[32 * g + j] >> 4) << g;
      out[16 + j] = static_cast<std::uint8_t>(fifth);
    }
    store_nibbles(codes, out + 48);
    out += 176;
  });
}

}  // namespace sterna::quant
