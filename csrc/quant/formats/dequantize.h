/// From decoded codes to floats. This is the definition of what codes and scales mean; it rounds as gguf.quants does,
/// because every decoder chooses codes and scales whose products are exact up to the last one.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace sterna::quant {

/// scale[g] * code (+ min[g]), in float.
template <auto kDecode, std::uint32_t kBlockSize, std::uint32_t kGroupSize, bool kHasMin>
void dequantize_block(const std::uint8_t* block, float* out) {
  DecodedBlock decoded;
  kDecode(block, decoded);
  for (std::uint32_t g = 0; g < kBlockSize / kGroupSize; ++g) {
    const float scale = decoded.scale[g];
    const float min = decoded.min[g];
    for (std::uint32_t i = g * kGroupSize; i < (g + 1) * kGroupSize; ++i) {
      const float product = scale * static_cast<float>(decoded.codes[i]);
      out[i] = kHasMin ? product + min : product;
    }
  }
}

/// (scale[0] * group_scale[g]) * code (- min[0] * group_min[g]), in float.
template <auto kDecode, std::uint32_t kBlockSize, std::uint32_t kGroupSize, bool kHasMin>
void dequantize_super(const std::uint8_t* block, float* out) {
  DecodedBlock decoded;
  kDecode(block, decoded);
  for (std::uint32_t g = 0; g < kBlockSize / kGroupSize; ++g) {
    const float scale = decoded.scale[0] * static_cast<float>(decoded.group_scale[g]);
    const float min = decoded.min[0] * static_cast<float>(decoded.group_min[g]);
    for (std::uint32_t i = g * kGroupSize; i < (g + 1) * kGroupSize; ++i) {
      const float product = scale * static_cast<float>(decoded.codes[i]);
      out[i] = kHasMin ? product - min : product;
    }
  }
}

}  // namespace sterna::quant
