/// How floats become the numbers that meet weights (PreparedForm): all of a row have the scale that its largest asks
/// for.
#pragma once

#include "cuda/kernels/device.cuh"

namespace sterna::cuda {

constexpr int kSumOf = 16;  // values, of the sums beside them

/// The power of two that brings the largest magnitude to 2^14 .. 2^15, where binary16 has it exact to 11 bits and sums
/// of two stay finite; 1 where it is 0 or not finite.
__device__ inline float power_for(float largest) {
  const auto exponent = static_cast<std::int32_t>(float_to_bits(largest) >> 23);
  if (largest == 0.0f || exponent == 255) return 1.0f;
  const std::int32_t wanted = 127 + 14 - exponent;
  return bits_to_float(static_cast<std::uint32_t>((wanted < 126 ? wanted : 126) + 127) << 23);
}

/// How the values of one row become numbers of a form.
struct Rounding {
  PreparedForm form;
  float factor;  // that values are multiplied by before they are rounded
  float scale;   // that rounded values are multiplied by afterwards

  __device__ Rounding(PreparedForm form, float largest) : form(form), factor(1.0f), scale(1.0f) {
    if (form == PreparedForm::kInt8) {
      scale = largest / 127.0f;
      factor = scale < 0x1p-126f ? 0.0f : 127.0f / largest;
      if (scale < 0x1p-126f) scale = 0.0f;
    } else if (form == PreparedForm::kHalf || form == PreparedForm::kTwoHalves) {
      factor = power_for(largest);
      scale = 1.0f / factor;
    }
    if (largest != largest || largest - largest != 0.0f) scale = largest - largest;  // NaN for what is not finite
  }

  __device__ std::uint16_t round(float value) const {
    value = value * factor;
    if (form == PreparedForm::kTwoBfloats) return float_to_bfloat(value);
    if (form == PreparedForm::kInt8) {
      const std::int32_t code = round_to_int(value);
      value = static_cast<float>(code < -127 ? -127 : code > 127 ? 127 : code);
    }
    return float_to_half(value);
  }
  __device__ float value_of(std::uint16_t rounded) const {
    return form == PreparedForm::kTwoBfloats ? bfloat_to_float(rounded) : half_to_float(rounded);
  }
  /// What `round` left of the value.
  __device__ std::uint16_t rest(float value, std::uint16_t rounded) const {
    value = value * factor - value_of(rounded);
    return form == PreparedForm::kTwoBfloats ? float_to_bfloat(value) : float_to_half(value);
  }
};

/// The bits that RowMaxima are of: of two numbers the larger magnitude has the larger ones, and a NaN has the largest.
__device__ inline std::uint32_t magnitude(float x) { return float_to_bits(x) & 0x7FFFFFFFu; }

}  // namespace sterna::cuda
