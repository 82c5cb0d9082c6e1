/// A super-block with scales alone (Q3_K, Q6_K, IQ4_XS): rounds the scale of every group to a whole multiple of the
/// block's f16 number so that the squared error of the whole block stays least.
#pragma once

#include <cstdint>

#include "quant/quantize/half_scale.h"
#include "quant/quantize/symmetric_search.h"

namespace sterna::quant {

/// Whole scales -kMost .. kMost - 1 of the groups for a given d; value = (d * scale[g]) * code. `slab` must
/// outlive it.
template <class Codes, int kGroups, int kMost>
class SymmetricFit {
 public:
  explicit SymmetricFit(const Slab<kGroups>& slab) : slab_(slab) {}

  /// From the scales that the groups would have alone. The largest gets -kMost, where the range reaches farthest.
  void start(const float* a) {
    float extreme = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      if (magnitude(a[g]) > magnitude(extreme)) extreme = a[g];
    }
    set_unit(extreme / -static_cast<float>(kMost));
    for (int g = 0; g < kGroups; ++g) scale_[g] = round1(clamp(a[g] * inverse1(d_)));
  }

  /// Tries the whole numbers around every group's scale.
  void settle() {
    SymmetricSums<kGroups> sums;
    alignas(64) float scale[kGroups], best[kGroups], a[kGroups];
    for (const float change : {0.0f, -1.0f, 1.0f}) {
      for (int g = 0; g < kGroups; ++g) {
        scale[g] = clamp(scale_[g] + change);
        a[g] = d_ * scale[g];
      }
      symmetric_sums<Codes>(slab_, a, sums);
      for (int g = 0; g < kGroups; ++g) {
        if (change != 0.0f && sums.error[g] >= sums_.error[g]) continue;
        best[g] = scale[g];
        sums_.error[g] = sums.error[g];
        sums_.qq[g] = sums.qq[g];
        sums_.rq[g] = sums.rq[g];
      }
    }
    std::copy_n(best, kGroups, scale_);
  }

  /// The best d for the codes that the groups had when they settled.
  void refit() {
    float ss = 0.0f, rs = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      ss += scale_[g] * scale_[g] * sums_.qq[g];
      rs += scale_[g] * sums_.rq[g];
    }
    if (ss > 0.0f) set_unit(d_ + rs / ss);
  }

  /// Of the whole block, as it settled.
  float error() const {
    float sum = 0.0f;
    for (int g = 0; g < kGroups; ++g) sum += sums_.error[g];
    return sum;
  }

  std::uint16_t d() const { return half_d_; }
  int scale(int g) const { return static_cast<int>(scale_[g]); }

  /// [256] as the file stores them.
  void codes(std::uint8_t* out) const {
    alignas(64) float a[kGroups];
    for (int g = 0; g < kGroups; ++g) a[g] = d_ * scale_[g];
    symmetric_codes<Codes>(slab_, a, out);
  }

 private:
  static float magnitude(float x) { return x < 0.0f ? -x : x; }
  static float clamp(float x) { return std::clamp(x, -static_cast<float>(kMost), static_cast<float>(kMost - 1)); }

  void set_unit(float d) {
    half_d_ = to_scale(d);
    d_ = half_to_float(half_d_);
  }

  const Slab<kGroups>& slab_;
  std::uint16_t half_d_ = 0;
  float d_ = 0.0f;
  alignas(64) float scale_[kGroups];
  SymmetricSums<kGroups> sums_;
};

/// The block fitted to `slab`.
template <class Codes, int kGroups, int kMost>
SymmetricFit<Codes, kGroups, kMost> fit_symmetric(const Slab<kGroups>& slab) {
  alignas(64) float a[kGroups];
  symmetric_search<Codes>(slab, a);
  SymmetricFit<Codes, kGroups, kMost> fit(slab);
  fit.start(a);
  fit.settle();
  SymmetricFit<Codes, kGroups, kMost> again = fit;
  again.refit();
  again.settle();
  return again.error() < fit.error() ? again : fit;
}

}  // namespace sterna::quant
