/// 256 weights as the searches see them: group beside group, so that four groups fill a vector and no sum ever crosses
/// lanes. The results are the same on every machine: each lane is one group's own sequence of float operations.
#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>

namespace sterna::quant {

/// GCC and clang lower this to whatever the machine has; it needs no instruction set beyond the baseline.
using F4 = float __attribute__((vector_size(16)));
using I4 = int __attribute__((vector_size(16)));

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

inline F4 abs4(F4 x) { return max4(x, -x); }
/// In one fixed order.
inline float sum4(F4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

/// To the nearest whole number, ties to even; |x| below 2^22.
inline F4 round4(F4 x) {
  constexpr float kMagic = 0x1.8p23f;
  return (x + splat(kMagic)) - splat(kMagic);
}

/// `kGroups` groups of 256 / kGroups weights; element j of group g is x[j][g]. Weighted: each weight's squared error
/// counts by its importance; else all count the same, and nothing is multiplied.
template <int kGroupsOfSlab, bool kIsWeighted>
struct Slab {
  static constexpr int kGroups = kGroupsOfSlab;
  static constexpr bool kWeighted = kIsWeighted;
  static constexpr int kSize = 256 / kGroups;

  alignas(64) float x[kSize][kGroups];
  alignas(64) float w[kWeighted ? kSize : 1][kGroups];
  alignas(64) float total[kGroups];  // sum of the importance

  /// From `count` weights in the order of the row, a multiple of kSize; zeros fill the rest. In a group that has no
  /// importance at all, all weights count the same.
  Slab(const float* weights, const float* importance, int count) {
    for (int g = 0; g < kGroups; ++g) {
      const bool there = g * kSize < count;
      for (int j = 0; j < kSize; ++j) x[j][g] = there ? weights[g * kSize + j] : 0.0f;
      total[g] = static_cast<float>(kSize);
      if constexpr (kWeighted) {
        float sum = 0.0f;
        for (int j = 0; j < kSize && there; ++j) sum += importance[g * kSize + j];
        for (int j = 0; j < kSize; ++j) w[j][g] = sum > 0.0f ? importance[g * kSize + j] : 1.0f;
        if (sum > 0.0f) total[g] = sum;
      }
    }
  }

  /// Four values of element j, times their importance.
  F4 weigh(F4 value, int j, int g) const {
    if constexpr (kWeighted) return load4(&w[j][g]) * value;
    return value;
  }
};

/// Calls use(slab) with the slab of each 256 weights of a row; of the last ones fewer may be there.
template <int kGroups, class Use>
void for_each_slab(const float* row, std::size_t k, const float* importance, Use use) {
  for (std::size_t i = 0; i < k; i += 256) {
    const auto count = static_cast<int>(std::min<std::size_t>(256, k - i));
    if (importance == nullptr) {
      use(Slab<kGroups, false>(row + i, nullptr, count));
    } else {
      use(Slab<kGroups, true>(row + i, importance + i, count));
    }
  }
}

}  // namespace sterna::quant
