/// 256 weights as the searches see them: group beside group, so that four groups fill a vector and no sum ever crosses
/// lanes. The results are the same on every machine: each lane is one group's own sequence of float operations.
#pragma once

#include <algorithm>
#include <cstddef>

namespace sterna::quant {

/// GCC and clang lower this to whatever the machine has; it needs no instruction set beyond the baseline.
using F4 = float __attribute__((vector_size(16)));

inline F4 splat(float x) { return F4{x, x, x, x}; }
inline F4 load4(const float* p) {
  F4 v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
inline void store4(float* p, F4 v) { __builtin_memcpy(p, &v, sizeof(v)); }
inline F4 min4(F4 a, F4 b) { return a < b ? a : b; }
inline F4 max4(F4 a, F4 b) { return a > b ? a : b; }
/// 0 for 0.
inline F4 inverse4(F4 x) { return x != 0.0f ? splat(1.0f) / x : splat(0.0f); }
inline float inverse1(float x) { return x != 0.0f ? 1.0f / x : 0.0f; }

/// To the nearest whole number, ties to even; |x| below 2^22.
inline F4 round4(F4 x) {
  constexpr float kMagic = 0x1.8p23f;
  return (x + splat(kMagic)) - splat(kMagic);
}
inline float round1(float x) {
  constexpr float kMagic = 0x1.8p23f;
  return (x + kMagic) - kMagic;
}

/// `kGroups` groups of 256 / kGroups weights with their importance; element j of group g is x[j][g].
template <int kGroups>
struct Slab {
  static constexpr int kSize = 256 / kGroups;
  alignas(64) float x[kSize][kGroups];
  alignas(64) float w[kSize][kGroups];
  alignas(64) float total[kGroups];  // sum of w
  bool weighted;                     // false: every w is 1

  /// From `count` weights in the order of the row, a multiple of kSize; zeros fill the rest. Without importance all
  /// weights count the same, and so they do in a group that has no importance at all.
  void fill(const float* weights, const float* importance, int count) {
    for (int g = 0; g < kGroups; ++g) {
      const bool there = g * kSize < count;
      for (int j = 0; j < kSize; ++j) x[j][g] = there ? weights[g * kSize + j] : 0.0f;
    }
    weighted = importance != nullptr;
    for (int g = 0; g < kGroups; ++g) {
      float sum = 0.0f;
      if (importance != nullptr && g * kSize < count) {
        for (int j = 0; j < kSize; ++j) sum += importance[g * kSize + j];
      }
      for (int j = 0; j < kSize; ++j) w[j][g] = sum > 0.0f ? importance[g * kSize + j] : 1.0f;
      total[g] = sum > 0.0f ? sum : static_cast<float>(kSize);
    }
  }
};

}  // namespace sterna::quant
