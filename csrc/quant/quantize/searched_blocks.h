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

/// Calls store(d, codes) for each block of the row: f16 scale, and the codes [32] as the file stores them.
template <class Codes, class Store>
void search_symmetric_blocks(const float* row, std::size_t k, const float* importance, Store store) {
  std::size_t left = k / 32;
  for_each_slab<8>(row, k, importance, [&](const auto& slab) {
    std::uint16_t d[8];
    std::uint8_t codes[256];
    for (int g = 0; g < 8; g += 4) {
      F4 a = symmetric_search<Codes>(slab, g);
      for (int u = 0; u < 4; ++u) a[u] = half_to_float(d[g + u] = to_scale(a[u]));
      symmetric_codes<Codes>(slab, g, a, codes);
    }
    for (int g = 0; g < 8 && left > 0; ++g, --left) store(d[g], codes + 32 * g);
  });
}

/// Calls store(d, m, codes) for each block of the row: f16 scale and minimum, and the codes [32], 0 .. levels.
template <class Store>
void search_affine_blocks(const float* row, std::size_t k, const float* importance, float levels, Store store) {
  std::size_t left = k / 32;
  for_each_slab<8>(row, k, importance, [&](const auto& slab) {
    std::uint16_t d[8], m[8];
    std::uint8_t codes[256];
    for (int g = 0; g < 8; g += 4) {
      Affine found = affine_search(slab, g, levels, std::numeric_limits<float>::max());
      for (int u = 0; u < 4; ++u) {
        found.a[u] = half_to_float(d[g + u] = to_scale(found.a[u]));
        found.b[u] = half_to_float(m[g + u] = to_scale(found.b[u]));
      }
      affine_codes(slab, g, levels, found, codes);
    }
    for (int g = 0; g < 8 && left > 0; ++g, --left) store(d[g], m[g], codes + 32 * g);
  });
}

}  // namespace sterna::quant
