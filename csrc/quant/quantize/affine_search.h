/// Codes with a scale and a minimum: finds a and b of value = a * q + b, q = 0 .. levels, that leave the least squared
/// error over a group. Four groups at a time, those from group g on.
#pragma once

#include <cstdint>

#include "quant/quantize/lanes.h"

namespace sterna::quant {

/// By how many codes the search first pulls the ends of a group's range in: each of these for either end. (Out, too:
/// the weights between may gain more than the ends lose; and weights that lie on codes already often leave out the
/// first or the last.) More, where importance may make the ends worth little.
inline constexpr float kAffineEnds[] = {0.0f, -1.0f, -0.3f, 0.45f, 0.9f};
inline constexpr float kAffineWeightedEnds[] = {0.0f, -1.0f, -0.3f, 0.5f, 1.0f, 1.8f};
inline constexpr int kAffineRounds = 2;

struct Affine {
  F4 a;
  F4 b;
};

/// What one look at four groups gives for one (a, b) each with the nearest codes: the weighted squared error, and the
/// sums over codes q and residuals r that its least-squares correction needs.
struct AffineSums {
  F4 error;
  F4 q;   // sum of w q
  F4 qq;  // sum of w q q
  F4 r;   // sum of w r
  F4 rq;  // sum of w r q
};

/// A group with a = 0 has all codes 0.
template <class S>
AffineSums affine_sums(const S& slab, int g, float levels, Affine at) {
  const F4 inverse = inverse4(at.a);
  AffineSums sums{};
  for (int j = 0; j < S::kSize; ++j) {
    const F4 x = load4(&slab.x[j][g]) - at.b;
    const F4 q = round4(min4(max4(x * inverse, splat(0.0f)), splat(levels)));
    const F4 r = x - at.a * q;
    const F4 wr = slab.weigh(r, j, g);
    const F4 wq = slab.weigh(q, j, g);
    sums.error += wr * r;
    sums.q += wq;
    sums.qq += wq * q;
    sums.r += wr;
    sums.rq += wr * q;
  }
  return sums;
}

/// The codes themselves, in the order of the row, whose first group is group 0.
template <class S>
void affine_codes(const S& slab, int g, float levels, Affine at, std::uint8_t* codes) {
  const F4 inverse = inverse4(at.a);
  for (int j = 0; j < S::kSize; ++j) {
    const F4 q = round4(min4(max4((load4(&slab.x[j][g]) - at.b) * inverse, splat(0.0f)), splat(levels)));
    for (int u = 0; u < 4; ++u) codes[(g + u) * S::kSize + j] = static_cast<std::uint8_t>(q[u]);
  }
}

/// The best a and b of the four groups. b stays at or below `most_b`: 0 where the format can only subtract a minimum.
template <class S>
Affine affine_search(const S& slab, int g, float levels, float most_b) {
  F4 low = load4(&slab.x[0][g]), high = low;
  for (int j = 1; j < S::kSize; ++j) {
    low = min4(low, load4(&slab.x[j][g]));
    high = max4(high, load4(&slab.x[j][g]));
  }
  low = min4(low, splat(most_b));
  const F4 w = load4(slab.total + g);
  // Where the codes leave some of their range, a shift by one code is as good; the first, which is the smaller minimum,
  // must not lose to the rounding of the sums.
  F4 energy{};
  for (int j = 0; j < S::kSize; ++j) {
    const F4 x = load4(&slab.x[j][g]);
    energy += slab.weigh(x, j, g) * x;
  }
  const F4 noise = splat(1e-10f) * energy;
  Affine best{};
  F4 least = splat(std::numeric_limits<float>::max());
  const auto look = [&](Affine at) {
    const auto [error_before, q, qq, r, rq] = affine_sums(slab, g, levels, at);
    // The best (a, b) for these codes, and the error there.
    const F4 determinant = w * qq - q * q;
    F4 da = determinant > 0.0f ? (w * rq - q * r) / determinant : splat(0.0f);
    F4 db = (r - da * q) / w;
    const auto above = at.b + db > splat(most_b);
    db = above ? splat(most_b) - at.b : db;
    da = above ? (rq - db * q) * inverse4(qq) : da;
    da = max4(da, -at.a);
    const F4 gain = splat(2.0f) * (da * rq + db * r) - da * da * qq - splat(2.0f) * da * db * q - db * db * w;
    const F4 error = max4(error_before - gain, splat(0.0f)) + noise;
    const auto better = error < splat(0.9999f) * least;
    best.a = better ? at.a + da : best.a;
    best.b = better ? at.b + db : best.b;
    least = better ? error : least;
  };
  const auto start_from = [&](const auto& ends) {
    for (const float of_low : ends) {
      for (const float of_high : ends) {
        const F4 a = (high - low) / splat(levels + of_low + of_high);
        look({a, min4(low + splat(of_low) * a, splat(most_b))});
      }
    }
  };
  if constexpr (S::kWeighted) {
    start_from(kAffineWeightedEnds);
  } else {
    start_from(kAffineEnds);
  }
  // Rounding to the better (a, b) may change codes, which may make a better one.
  for (int round = 0; round < kAffineRounds; ++round) look(best);
  return best;
}

}  // namespace sterna::quant
