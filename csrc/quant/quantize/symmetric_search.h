/// Codes with a scale alone: finds a of value = a * code that leaves the least squared error over a group. What codes
/// there are is the matter of a Codes type (codes.h). Four groups at a time, those from group g on.
#pragma once

#include <cstdint>

#include "quant/quantize/lanes.h"

namespace sterna::quant {

/// What one look at four groups gives for one a each with the nearest codes: the weighted squared error, and the sums
/// over codes q and residuals r that its least-squares correction needs.
struct SymmetricSums {
  F4 error;
  F4 qq;  // sum of w q q
  F4 rq;  // sum of w r q
};

/// For `a` of either sign; a group with a = 0 counts as all zeros.
template <class Codes, class S>
SymmetricSums symmetric_sums(const S& slab, int g, F4 a) {
  const F4 inverse = inverse4(a);
  SymmetricSums sums{};
  for (int j = 0; j < S::kSize; ++j) {
    const F4 x = load4(&slab.x[j][g]);
    const F4 q = Codes::nearest(x * inverse);
    const F4 r = x - a * q;
    const F4 wr = slab.weigh(r, j, g);
    sums.error += wr * r;
    sums.qq += slab.weigh(q, j, g) * q;
    sums.rq += wr * q;
  }
  return sums;
}

/// What a file stores for the codes, in the order of the row, whose first group is group 0.
template <class Codes, class S>
void symmetric_codes(const S& slab, int g, F4 a, std::uint8_t* codes) {
  const F4 inverse = inverse4(a);
  for (int j = 0; j < S::kSize; ++j) {
    const F4 stored = Codes::stored(load4(&slab.x[j][g]) * inverse);
    for (int u = 0; u < 4; ++u) codes[(g + u) * S::kSize + j] = static_cast<std::uint8_t>(stored[u]);
  }
}

/// The best a of the four groups.
template <class Codes, class S>
F4 symmetric_search(const S& slab, int g) {
  F4 extreme = load4(&slab.x[0][g]);
  for (int j = 1; j < S::kSize; ++j) {
    const F4 x = load4(&slab.x[j][g]);
    extreme = abs4(x) > abs4(extreme) ? x : extreme;
  }
  F4 best{}, least = splat(std::numeric_limits<float>::max());
  const auto look = [&](F4 a) {
    const SymmetricSums sums = symmetric_sums<Codes>(slab, g, a);
    // The best a for these codes, and the error there.
    const F4 change = sums.qq > 0.0f ? sums.rq / sums.qq : splat(0.0f);
    const F4 error = sums.error - change * sums.rq;
    best = error < least ? a + change : best;
    least = min4(error, least);
  };
  for (const float code : Codes::kStarts) look(extreme / splat(code));
  if constexpr (S::kWeighted) {
    for (const float code : Codes::kWeightedStarts) look(extreme / splat(code));
  }
  // Rounding to the better a may change codes, which may make a better one.
  look(best);
  return best;
}

}  // namespace sterna::quant
