/// The codes of formats without a minimum, as the symmetric search sees them: `nearest` code of each lane, and what the
/// file has for it; `kStarts`, the codes that the search first gives the largest weight of a group, of both signs
/// because the ranges are lopsided; `kWeightedStarts`, more of them for weights of unequal importance, where the
/// largest may be of little, and then is better cut off. Measured on embeddings, projections and Gaussian weights: more
/// starts or rounds gain less than half a percent of the error.
#pragma once

#include "quant/quantize/lanes.h"

namespace sterna::quant {

/// -kMost .. kMost - 1, stored from 0 on.
template <int kMost>
struct LinearCodes {
  static F4 nearest(F4 x) {
    return round4(min4(max4(x, splat(-static_cast<float>(kMost))), splat(static_cast<float>(kMost - 1))));
  }
  static F4 stored(F4 x) { return nearest(x) + splat(static_cast<float>(kMost)); }
};

struct Codes3Bit : LinearCodes<4> {
  static constexpr float kStarts[] = {-4.0f, -3.6f, -3.2f, 3.0f, 2.6f, 2.2f};
  static constexpr float kWeightedStarts[] = {-5.5f, -4.8f, 4.5f, 3.7f};
};
struct Codes4Bit : LinearCodes<8> {
  static constexpr float kStarts[] = {-8.4f, -8.0f, -7.6f, -7.2f, 7.4f, 7.0f, 6.6f, 6.2f};
  static constexpr float kWeightedStarts[] = {-11.0f, -9.5f, 9.5f, 8.4f};
};
struct Codes5Bit : LinearCodes<16> {
  static constexpr float kStarts[] = {-16.4f, -16.0f, -15.6f, -15.2f, 15.4f, 15.0f, 14.6f, 14.2f};
  static constexpr float kWeightedStarts[] = {-21.0f, -18.5f, 19.0f, 17.0f};
};
struct Codes6Bit : LinearCodes<32> {
  static constexpr float kStarts[] = {-32.5f, -32.0f, -31.5f, -31.0f, 31.5f, 31.0f, 30.5f, 30.0f};
  static constexpr float kWeightedStarts[] = {-40.0f, -36.0f, 38.0f, 34.0f};
};

/// The table of IQ4_NL and IQ4_XS (ggml-common.h, kvalues_iq4nl), stored as indices.
struct CodesByTable {
  static constexpr float kValues[16] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                        1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};
  static constexpr float kStarts[] = {-137.0f, -127.0f, -117.0f, -107.0f, 123.0f, 113.0f, 103.0f, 93.0f};
  static constexpr float kWeightedStarts[] = {-170.0f, -150.0f, 150.0f, 135.0f};

  static F4 nearest(F4 x) {
    F4 value = splat(kValues[0]);
    for (int i = 1; i < 16; ++i) {
      value += x > splat(middle(i)) ? splat(kValues[i] - kValues[i - 1]) : splat(0.0f);
    }
    return value;
  }
  static F4 stored(F4 x) {
    F4 index = splat(0.0f);
    for (int i = 1; i < 16; ++i) index += x > splat(middle(i)) ? splat(1.0f) : splat(0.0f);
    return index;
  }

 private:
  static constexpr float middle(int i) { return 0.5f * (kValues[i - 1] + kValues[i]); }
};

}  // namespace sterna::quant
