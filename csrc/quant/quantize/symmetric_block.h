/// A super-block with scales alone (Q3_K, Q6_K, IQ4_XS): rounds the scale of every group to a whole multiple of the
/// block's f16 number so that the squared error of the whole block stays least.
#pragma once

#include <cstdint>

#include "quant/quantize/half_scale.h"
#include "quant/quantize/symmetric_search.h"

namespace sterna::quant {

/// Whole scales -kMost .. kMost - 1 of the groups for a given d; value = (d * scale[g]) * code. `slab` must outlive it.
template <class Codes, class S, int kMost>
class SymmetricFit {
 public:
  explicit SymmetricFit(const S& slab) : slab_(slab) {}

  /// From the scales `a` [kGroups] that the groups would have alone. The largest gets -kMost, where the range reaches
  /// farthest.
  void start(const float* a) {
    float extreme = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      if (magnitude(a[g]) > magnitude(extreme)) extreme = a[g];
    }
    set_unit(extreme / -static_cast<float>(kMost));
    for (int g = 0; g < kGroups; g += 4) store4(scale_ + g, round4(clamp(load4(a + g) * splat(inverse1(d_)))));
  }

  /// Tries the whole numbers around every group's scale.
  void settle() {
    for (int g = 0; g < kGroups; g += 4) {
      const F4 scale = load4(scale_ + g);
      F4 best = scale;
      SymmetricSums least = look(g, scale);
      for (const float change : {-1.0f, 1.0f}) {
        const F4 other = clamp(scale + splat(change));
        const SymmetricSums sums = look(g, other);
        const auto better = sums.error < least.error;
        best = better ? other : best;
        least.error = better ? sums.error : least.error;
        least.qq = better ? sums.qq : least.qq;
        least.rq = better ? sums.rq : least.rq;
      }
      store4(scale_ + g, best);
      sums_[g / 4] = least;
    }
  }

  /// The best d for the codes that the groups had when they settled.
  void refit() {
    F4 ss{}, rs{};
    for (int g = 0; g < kGroups; g += 4) {
      const F4 scale = load4(scale_ + g);
      ss += scale * scale * sums_[g / 4].qq;
      rs += scale * sums_[g / 4].rq;
    }
    if (sum4(ss) > 0.0f) set_unit(d_ + sum4(rs) / sum4(ss));
  }

  /// Of the whole block, as it settled.
  float error() const {
    F4 sum{};
    for (const SymmetricSums& sums : sums_) sum += sums.error;
    return sum4(sum);
  }

  std::uint16_t d() const { return half_d_; }
  int scale(int g) const { return static_cast<int>(scale_[g]); }

  /// [256] as the file stores them.
  void codes(std::uint8_t* out) const {
    for (int g = 0; g < kGroups; g += 4) symmetric_codes<Codes>(slab_, g, splat(d_) * load4(scale_ + g), out);
  }

 private:
  static constexpr int kGroups = S::kGroups;

  static float magnitude(float x) { return x < 0.0f ? -x : x; }
  static F4 clamp(F4 x) {
    return min4(max4(x, splat(-static_cast<float>(kMost))), splat(static_cast<float>(kMost - 1)));
  }

  void set_unit(float d) {
    half_d_ = to_scale(d);
    d_ = half_to_float(half_d_);
  }

  SymmetricSums look(int g, F4 scale) const { return symmetric_sums<Codes>(slab_, g, splat(d_) * scale); }

  const S& slab_;
  std::uint16_t half_d_ = 0;
  float d_ = 0.0f;
  alignas(16) float scale_[kGroups];
  SymmetricSums sums_[kGroups / 4];
};

/// The block fitted to `slab`.
template <class Codes, int kMost, class S>
SymmetricFit<Codes, S, kMost> fit_symmetric(const S& slab) {
  alignas(16) float a[S::kGroups];
  for (int g = 0; g < S::kGroups; g += 4) store4(a + g, symmetric_search<Codes>(slab, g));
  SymmetricFit<Codes, S, kMost> fit(slab);
  fit.start(a);
  fit.settle();
  SymmetricFit<Codes, S, kMost> again = fit;
  again.refit();
  again.settle();
  return again.error() < fit.error() ? again : fit;
}

}  // namespace sterna::quant
