/// Blocks of 32 weights with an f16 scale of their own, and perhaps an f16 minimum: eight of them are searched
/// together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "quant/quantize/affine_search.h"
#include "quant/quantize/half_scale.h"
#include "quant/quantize/symmetric_search.h"

namespace sterna::quant {

inline constexpr std::size_t kTogether = 256;

/// Calls store(d, codes) for each block of the row: f16 scale, and the codes [32] as the file stores them.
template <class Codes, class Store>
void search_symmetric_blocks(const float* row, std::size_t k, const float* importance, Store store) {
  for (std::size_t i = 0; i < k; i += kTogether) {
    const auto count = static_cast<int>(std::min(kTogether, k - i));
    Slab<8> slab;
    slab.fill(row + i, importance == nullptr ? nullptr : importance + i, count);
    alignas(64) float a[8];
    symmetric_search<Codes>(slab, a);
    std::uint16_t d[8];
    for (int g = 0; g < 8; ++g) {
      d[g] = to_scale(a[g]);
      a[g] = half_to_float(d[g]);
    }
    std::uint8_t codes[kTogether];
    symmetric_codes<Codes>(slab, a, codes);
    for (int g = 0; 32 * g < count; ++g) store(d[g], codes + 32 * g);
  }
}

/// Calls store(d, m, codes) for each block of the row: f16 scale and minimum, and the codes [32], 0 .. levels.
template <class Store>
void search_affine_blocks(const float* row, std::size_t k, const float* importance, float levels, Store store) {
  for (std::size_t i = 0; i < k; i += kTogether) {
    const auto count = static_cast<int>(std::min(kTogether, k - i));
    Slab<8> slab;
    slab.fill(row + i, importance == nullptr ? nullptr : importance + i, count);
    alignas(64) float a[8], b[8];
    affine_search(slab, levels, std::numeric_limits<float>::max(), a, b);
    std::uint16_t d[8], m[8];
    for (int g = 0; g < 8; ++g) {
      d[g] = to_scale(a[g]);
      m[g] = to_scale(b[g]);
      a[g] = half_to_float(d[g]);
      b[g] = half_to_float(m[g]);
    }
    std::uint8_t codes[kTogether];
    affine_codes(slab, levels, a, b, codes);
    for (int g = 0; 32 * g < count; ++g) store(d[g], m[g], codes + 32 * g);
  }
}

}  // namespace sterna::quant
