/// A super-block with scales and minima (Q2_K, Q4_K, Q5_K): rounds the scale and the minimum of every group to whole
/// multiples of the block's two f16 numbers so that the squared error of the whole block stays least.
#pragma once

#include <cstdint>

#include "quant/quantize/affine_search.h"
#include "quant/quantize/half_scale.h"

namespace sterna::quant {

/// Whole scales and minima 0 .. kMost of the groups for given d and dmin; value = (d * scale[g]) * code - dmin *
/// min[g]. `slab` must outlive it.
template <int kGroups, int kMost>
class AffineFit {
 public:
  AffineFit(const Slab<kGroups>& slab, float levels) : slab_(slab), levels_(levels) {}

  /// From the scales and minima that the groups would have alone.
  void start(const float* a, const float* b) {
    float most_a = 0.0f, most_m = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      most_a = std::max(most_a, a[g]);
      most_m = std::max(most_m, -b[g]);
    }
    set_units(most_a / kMost, most_m / kMost);
    for (int g = 0; g < kGroups; ++g) {
      scale_[g] = to_whole(a[g] * inverse1(d_));
      min_[g] = to_whole(-b[g] * inverse1(dmin_));
    }
  }

  /// Tries the whole numbers around every group's scale, each with the minimum that suits it.
  void settle() {
    AffineSums<kGroups> sums;
    alignas(64) float scale[kGroups], min[kGroups], best_scale[kGroups], best_min[kGroups];
    bool first = true;
    for (const float change : {0.0f, -1.0f, 1.0f}) {
      for (int g = 0; g < kGroups; ++g) {
        scale[g] = std::clamp(scale_[g] + change, 0.0f, static_cast<float>(kMost));
        min[g] = min_[g];
      }
      for (int round = 0; round < 2; ++round) {
        look(scale, min, sums);
        for (int g = 0; g < kGroups; ++g) {
          if (first || sums.error[g] < sums_.error[g]) {
            best_scale[g] = scale[g];
            best_min[g] = min[g];
            sums_.error[g] = sums.error[g];
            sums_.q[g] = sums.q[g];
            sums_.qq[g] = sums.qq[g];
            sums_.r[g] = sums.r[g];
            sums_.rq[g] = sums.rq[g];
          }
          min[g] = to_whole(min[g] - sums.r[g] / slab_.total[g] * inverse1(dmin_));
        }
        first = false;
      }
    }
    std::copy_n(best_scale, kGroups, scale_);
    std::copy_n(best_min, kGroups, min_);
  }

  /// The best d and dmin for the codes that the groups had when they settled.
  void refit() {
    float ss = 0.0f, sm = 0.0f, mm = 0.0f, rs = 0.0f, rm = 0.0f;
    for (int g = 0; g < kGroups; ++g) {
      ss += scale_[g] * scale_[g] * sums_.qq[g];
      sm += scale_[g] * min_[g] * sums_.q[g];
      mm += min_[g] * min_[g] * slab_.total[g];
      rs += scale_[g] * sums_.rq[g];
      rm -= min_[g] * sums_.r[g];
    }
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
    float sum = 0.0f;
    for (int g = 0; g < kGroups; ++g) sum += sums_.error[g];
    return sum;
  }

  std::uint16_t d() const { return half_d_; }
  std::uint16_t dmin() const { return half_dmin_; }
  int scale(int g) const { return static_cast<int>(scale_[g]); }
  int min(int g) const { return static_cast<int>(min_[g]); }

  /// [256]
  void codes(std::uint8_t* out) const {
    alignas(64) float a[kGroups], b[kGroups];
    scales_of(scale_, min_, a, b);
    affine_codes(slab_, levels_, a, b, out);
  }

 private:
  static float to_whole(float x) { return round1(std::clamp(x, 0.0f, static_cast<float>(kMost))); }

  void set_units(float d, float dmin) {
    half_d_ = to_scale(std::max(d, 0.0f));
    half_dmin_ = to_scale(std::max(dmin, 0.0f));
    d_ = half_to_float(half_d_);
    dmin_ = half_to_float(half_dmin_);
  }

  void scales_of(const float* scale, const float* min, float* a, float* b) const {
    for (int g = 0; g < kGroups; ++g) {
      a[g] = d_ * scale[g];
      b[g] = -(dmin_ * min[g]);
    }
  }

  void look(const float* scale, const float* min, AffineSums<kGroups>& sums) const {
    alignas(64) float a[kGroups], b[kGroups];
    scales_of(scale, min, a, b);
    affine_sums(slab_, levels_, a, b, sums);
  }

  const Slab<kGroups>& slab_;
  float levels_;
  std::uint16_t half_d_ = 0, half_dmin_ = 0;
  float d_ = 0.0f, dmin_ = 0.0f;
  alignas(64) float scale_[kGroups];
  alignas(64) float min_[kGroups];
  AffineSums<kGroups> sums_;
};

/// The block fitted to `slab`, with codes 0 .. levels.
template <int kGroups, int kMost>
AffineFit<kGroups, kMost> fit_affine(const Slab<kGroups>& slab, float levels) {
  alignas(64) float a[kGroups], b[kGroups];
  affine_search(slab, levels, 0.0f, a, b);
  AffineFit<kGroups, kMost> fit(slab, levels);
  fit.start(a, b);
  fit.settle();
  AffineFit<kGroups, kMost> again = fit;
  again.refit();
  again.settle();
  return again.error() < fit.error() ? again : fit;
}

}  // namespace sterna::quant
