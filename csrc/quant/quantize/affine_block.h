/// A super-block with scales and minima (Q2_K, Q4_K, Q5_K): rounds the scale and the minimum of every group to whole
/// multiples of the block's two f16 numbers so that the squared error of the whole block stays least.
#pragma once

#include <cstdint>

#include "quant/quantize/affine_search.h"
#include "quant/quantize/half_scale.h"

namespace sterna::quant {

/// Whole scales and minima 0 .. kMost of the groups for given d and dmin; value = (d * scale[g]) * code - dmin *
/// min[g]. `slab` must outlive it.
template <class S, int kMost>
class AffineFit {
 public:
  AffineFit(const S& slab, float levels) : slab_(slab), levels_(levels) {}

  /// From the a and b [kGroups] that the groups would have alone.
  void start(const float* a, const float* b) {
    float most_a = 0.0f, most_m = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      most_a = std::max(most_a, a[g]);
      most_m = std::max(most_m, -b[g]);
    }
    set_units(most_a / kMost, most_m / kMost);
    for (int g = 0; g < kGroups; g += 4) {
      store4(scale_ + g, to_whole(load4(a + g) * splat(inverse1(d_))));
      store4(min_ + g, to_whole(-load4(b + g) * splat(inverse1(dmin_))));
    }
  }

  /// Tries the whole numbers around every group's scale, each with the minimum that suits it.
  void settle() {
    for (int g = 0; g < kGroups; g += 4) {
      const F4 scale = load4(scale_ + g);
      F4 best_scale = scale, best_min = load4(min_ + g);
      AffineSums least{};
      least.error = splat(std::numeric_limits<float>::max());
      for (const float change : {0.0f, -1.0f, 1.0f}) {
        const F4 other = clamp(scale + splat(change));
        F4 min = load4(min_ + g);
        for (int round = 0; round < 2; ++round) {
          const AffineSums sums = look(g, other, min);
          const auto better = sums.error < least.error;
          best_scale = better ? other : best_scale;
          best_min = better ? min : best_min;
          least.error = better ? sums.error : least.error;
          least.q = better ? sums.q : least.q;
          least.qq = better ? sums.qq : least.qq;
          least.r = better ? sums.r : least.r;
          least.rq = better ? sums.rq : least.rq;
          min = to_whole(min - sums.r / load4(slab_.total + g) * splat(inverse1(dmin_)));
        }
      }
      store4(scale_ + g, best_scale);
      store4(min_ + g, best_min);
      sums_[g / 4] = least;
    }
  }

  /// The best d and dmin for the codes that the groups had when they settled.
  void refit() {
    F4 of_ss{}, of_sm{}, of_mm{}, of_rs{}, of_rm{};
    for (int g = 0; g < kGroups; g += 4) {
      const AffineSums& sums = sums_[g / 4];
      const F4 scale = load4(scale_ + g), min = load4(min_ + g);
      of_ss += scale * scale * sums.qq;
      of_sm += scale * min * sums.q;
      of_mm += min * min * load4(slab_.total + g);
      of_rs += scale * sums.rq;
      of_rm -= min * sums.r;
    }
    const float ss = sum4(of_ss), sm = sum4(of_sm), mm = sum4(of_mm), rs = sum4(of_rs), rm = sum4(of_rm);
    // The residual is x - d s q + dmin m; these solve the normal equations of a change of d and dmin.
    const float determinant = ss * mm - sm * sm;
    if (determinant > 0.0f) {
      set_units(d_ + (rs * mm + rm * sm) / determinant, dmin_ + (rm * ss + rs * sm) / determinant);
    } else if (ss > 0.0f) {
      set_units(d_ + rs / ss, dmin_);
    }
  }

  /// Of the whole block, as it settled.
  float error() const {
    F4 sum{};
    for (const AffineSums& sums : sums_) sum += sums.error;
    return sum4(sum);
  }

  std::uint16_t d() const { return half_d_; }
  std::uint16_t dmin() const { return half_dmin_; }
  int scale(int g) const { return static_cast<int>(scale_[g]); }
  int min(int g) const { return static_cast<int>(min_[g]); }

  /// [256]
  void codes(std::uint8_t* out) const {
    for (int g = 0; g < kGroups; g += 4) {
      affine_codes(slab_, g, levels_, values(load4(scale_ + g), load4(min_ + g)), out);
    }
  }

 private:
  static constexpr int kGroups = S::kGroups;

  static F4 clamp(F4 x) { return min4(max4(x, splat(0.0f)), splat(static_cast<float>(kMost))); }
  static F4 to_whole(F4 x) { return round4(clamp(x)); }

  void set_units(float d, float dmin) {
    half_d_ = to_scale(std::max(d, 0.0f));
    half_dmin_ = to_scale(std::max(dmin, 0.0f));
    d_ = half_to_float(half_d_);
    dmin_ = half_to_float(half_dmin_);
  }

  Affine values(F4 scale, F4 min) const { return {splat(d_) * scale, -(splat(dmin_) * min)}; }
  AffineSums look(int g, F4 scale, F4 min) const { return affine_sums(slab_, g, levels_, values(scale, min)); }

  const S& slab_;
  float levels_;
  std::uint16_t half_d_ = 0, half_dmin_ = 0;
  float d_ = 0.0f, dmin_ = 0.0f;
  alignas(16) float scale_[kGroups];
  alignas(16) float min_[kGroups];
  AffineSums sums_[kGroups / 4];
};

/// The block fitted to `slab`, with codes 0 .. levels.
template <int kMost, class S>
AffineFit<S, kMost> fit_affine(const S& slab, float levels) {
  alignas(16) float a[S::kGroups], b[S::kGroups];
  for (int g = 0; g < S::kGroups; g += 4) {
    const Affine found = affine_search(slab, g, levels, 0.0f);
    store4(a + g, found.a);
    store4(b + g, found.b);
  }
  AffineFit<S, kMost> fit(slab, levels);
  fit.start(a, b);
  fit.settle();
  AffineFit<S, kMost> again = fit;
  again.refit();
  again.settle();
  return again.error() < fit.error() ? again : fit;
}

}  // namespace sterna::quant
