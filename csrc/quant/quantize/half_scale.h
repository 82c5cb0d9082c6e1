/// The f16 numbers of a block.
#pragma once

#include <cstdint>

#include "base/half.h"

namespace sterna::quant {

/// The nearest finite f16.
inline std::uint16_t to_scale(float x) {
  constexpr float kLargest = 65504.0f;
  return float_to_half(x > kLargest ? kLargest : x < -kLargest ? -kLargest : x);
}

}  // namespace sterna::quant
