/// Codes with a scale and a minimum: finds a and b of value = a * q + b, q = 0 .. levels, that leave the least squared
/// error over a group.
#pragma once

#include <cstdint>

#include "quant/quantize/lanes.h"

namespace sterna::quant {

/// By how many codes the search first pulls the ends of a group's range in: each of these for either end. (Out, too:
/// the weights between gain more than the ends lose.) Measured on embeddings, projections and Gaussian weights of real
/// models: a finer grid gains less than half a percent of the error.
inline constexpr float kAffineEnds[] = {-0.3f, 0.1f, 0.5f, 0.9f};
inline constexpr int kAffineRounds = 2;

/// What one look at the groups gives for one (a, b) per group with the nearest codes: the weighted squared error, and
/// the sums over codes q and residuals r that its least-squares correction needs.
template <int kGroups>
struct AffineSums {
  alignas(64) float error[kGroups];
  alignas(64) float q[kGroups];   // sum of w q
  alignas(64) float qq[kGroups];  // sum of w q q
  alignas(64) float r[kGroups];   // sum of w r
  alignas(64) float rq[kGroups];  // sum of w r q
};

template <bool kWeighted, int kGroups>
void affine_pass(const Slab<kGroups>& slab, float levels, const float* a, const float* b, AffineSums<kGroups>& out) {
  for (int g = 0; g < kGroups; g += 4) {
    const F4 scale = load4(a + g);
    const F4 shift = load4(b + g);
    const F4 inverse = inverse4(scale);
    F4 error{}, sum_q{}, sum_qq{}, sum_r{}, sum_rq{};
    for (int j = 0; j < Slab<kGroups>::kSize; ++j) {
      const F4 x = load4(&slab.x[j][g]) - shift;
      const F4 q = round4(min4(max4(x * inverse, splat(0.0f)), splat(levels)));
      const F4 r = x - scale * q;
      const F4 wr = kWeighted ? load4(&slab.w[j][g]) * r : r;
      const F4 wq = kWeighted ? load4(&slab.w[j][g]) * q : q;
      error += wr * r;
      sum_q += wq;
      sum_qq += wq * q;
      sum_r += wr;
      sum_rq += wr * q;
    }
    store4(out.error + g, error);
    store4(out.q + g, sum_q);
    store4(out.qq + g, sum_qq);
    store4(out.r + g, sum_r);
    store4(out.rq + g, sum_rq);
  }
}

/// For (`a`, `b`) [kGroups]; a group with a = 0 has all codes 0.
template <int kGroups>
void affine_sums(const Slab<kGroups>& slab, float levels, const float* a, const float* b, AffineSums<kGroups>& out) {
  slab.weighted ? affine_pass<true>(slab, levels, a, b, out) : affine_pass<false>(slab, levels, a, b, out);
}

/// The codes themselves, in the order of the row.
template <int kGroups>
void affine_codes(const Slab<kGroups>& slab, float levels, const float* a, const float* b, std::uint8_t* codes) {
  for (int g = 0; g < kGroups; g += 4) {
    const F4 shift = load4(b + g);
    const F4 inverse = inverse4(load4(a + g));
    for (int j = 0; j < Slab<kGroups>::kSize; ++j) {
      const F4 q = round4(min4(max4((load4(&slab.x[j][g]) - shift) * inverse, splat(0.0f)), splat(levels)));
      for (int u = 0; u < 4; ++u) codes[(g + u) * Slab<kGroups>::kSize + j] = static_cast<std::uint8_t>(q[u]);
    }
  }
}

/// The best (a, b) for the codes that `sums` were taken with, in place, and the error there. `b` stays at or below
/// `most_b`.
template <int kGroups>
void affine_step(const Slab<kGroups>& slab, const AffineSums<kGroups>& sums, float most_b, float* a, float* b,
                 float* error) {
  for (int g = 0; g < kGroups; ++g) {
    const float w = slab.total[g], q = sums.q[g], qq = sums.qq[g], r = sums.r[g], rq = sums.rq[g];
    const float determinant = w * qq - q * q;
    float da = determinant > 0.0f ? (w * rq - q * r) / determinant : 0.0f;
    float db = (r - da * q) / w;
    if (b[g] + db > most_b) {
      db = most_b - b[g];
      da = qq > 0.0f ? (rq - db * q) / qq : 0.0f;
    }
    if (a[g] + da < 0.0f) da = -a[g];
    error[g] = sums.error[g] - 2.0f * (da * rq + db * r) + da * da * qq + 2.0f * da * db * q + db * db * w;
    a[g] += da;
    b[g] += db;
  }
}

/// The best a and b of each group. `most_b` is 0 where the format can only subtract a minimum.
template <int kGroups>
void affine_search(const Slab<kGroups>& slab, float levels, float most_b, float* a, float* b) {
  constexpr int kSize = Slab<kGroups>::kSize;
  alignas(64) float low[kGroups], high[kGroups], best[kGroups];
  for (int g = 0; g < kGroups; ++g) low[g] = high[g] = slab.x[0][g];
  for (int j = 1; j < kSize; ++j) {
    for (int g = 0; g < kGroups; ++g) {
      low[g] = std::min(low[g], slab.x[j][g]);
      high[g] = std::max(high[g], slab.x[j][g]);
    }
  }
  for (int g = 0; g < kGroups; ++g) {
    low[g] = std::min(low[g], most_b);
    best[g] = -1.0f;
  }
  alignas(64) float at_a[kGroups], at_b[kGroups], error[kGroups];
  AffineSums<kGroups> sums;
  const auto look = [&] {
    affine_sums(slab, levels, at_a, at_b, sums);
    affine_step(slab, sums, most_b, at_a, at_b, error);
    for (int g = 0; g < kGroups; ++g) {
      if (best[g] < 0.0f || error[g] < best[g]) {
        best[g] = std::max(error[g], 0.0f);
        a[g] = at_a[g];
        b[g] = at_b[g];
      }
    }
  };
  for (const float of_low : kAffineEnds) {
    for (const float of_high : kAffineEnds) {
      for (int g = 0; g < kGroups; ++g) {
        at_a[g] = (high[g] - low[g]) / (levels + of_low + of_high);
        at_b[g] = std::min(low[g] + of_low * at_a[g], most_b);
      }
      look();
    }
  }
  // Rounding to the better (a, b) may change codes, which may make a better one.
  for (int round = 0; round < kAffineRounds; ++round) {
    std::copy_n(a, kGroups, at_a);
    std::copy_n(b, kGroups, at_b);
    look();
  }
}

}  // namespace sterna::quant
