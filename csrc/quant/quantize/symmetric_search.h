/// Codes with a scale alone: finds a of value = a * code that leaves the least squared error over a group. What codes
/// there are is the matter of a Codes type (codes.h).
#pragma once

#include <cstdint>

#include "quant/quantize/lanes.h"

namespace sterna::quant {

/// What one look at the groups gives for one a per group with the nearest codes: the weighted squared error, and the
/// sums over codes q and residuals r that its least-squares correction needs.
template <int kGroups>
struct SymmetricSums {
  alignas(64) float error[kGroups];
  alignas(64) float qq[kGroups];  // sum of w q q
  alignas(64) float rq[kGroups];  // sum of w r q
};

template <class Codes, bool kWeighted, int kGroups>
void symmetric_pass(const Slab<kGroups>& slab, const float* a, SymmetricSums<kGroups>& out) {
  for (int g = 0; g < kGroups; g += 4) {
    const F4 scale = load4(a + g);
    const F4 inverse = inverse4(scale);
    F4 error{}, sum_qq{}, sum_rq{};
    for (int j = 0; j < Slab<kGroups>::kSize; ++j) {
      const F4 x = load4(&slab.x[j][g]);
      const F4 q = Codes::nearest(x * inverse);
      const F4 r = x - scale * q;
      const F4 wr = kWeighted ? load4(&slab.w[j][g]) * r : r;
      error += wr * r;
      sum_qq += (kWeighted ? load4(&slab.w[j][g]) * q : q) * q;
      sum_rq += wr * q;
    }
    store4(out.error + g, error);
    store4(out.qq + g, sum_qq);
    store4(out.rq + g, sum_rq);
  }
}

/// For `a` [kGroups], of either sign.
template <class Codes, int kGroups>
void symmetric_sums(const Slab<kGroups>& slab, const float* a, SymmetricSums<kGroups>& out) {
  slab.weighted ? symmetric_pass<Codes, true>(slab, a, out) : symmetric_pass<Codes, false>(slab, a, out);
}

/// What a file stores for the codes, in the order of the row.
template <class Codes, int kGroups>
void symmetric_codes(const Slab<kGroups>& slab, const float* a, std::uint8_t* codes) {
  for (int g = 0; g < kGroups; g += 4) {
    const F4 inverse = inverse4(load4(a + g));
    for (int j = 0; j < Slab<kGroups>::kSize; ++j) {
      const F4 stored = Codes::stored(load4(&slab.x[j][g]) * inverse);
      for (int u = 0; u < 4; ++u) codes[(g + u) * Slab<kGroups>::kSize + j] = static_cast<std::uint8_t>(stored[u]);
    }
  }
}

/// The best a for the codes that `sums` were taken with, in place, and the error there.
template <int kGroups>
void symmetric_step(const SymmetricSums<kGroups>& sums, float* a, float* error) {
  for (int g = 0; g < kGroups; ++g) {
    const float da = sums.qq[g] > 0.0f ? sums.rq[g] / sums.qq[g] : 0.0f;
    error[g] = sums.error[g] - da * sums.rq[g];
    a[g] += da;
  }
}

/// The best a of each group, [kGroups].
template <class Codes, int kGroups>
void symmetric_search(const Slab<kGroups>& slab, float* a) {
  alignas(64) float extreme[kGroups], best[kGroups], at[kGroups], error[kGroups];
  for (int g = 0; g < kGroups; ++g) extreme[g] = slab.x[0][g];
  for (int j = 1; j < Slab<kGroups>::kSize; ++j) {
    for (int g = 0; g < kGroups; ++g) {
      const float x = slab.x[j][g];
      if ((x < 0.0f ? -x : x) > (extreme[g] < 0.0f ? -extreme[g] : extreme[g])) extreme[g] = x;
    }
  }
  for (int g = 0; g < kGroups; ++g) best[g] = -1.0f;
  SymmetricSums<kGroups> sums;
  const auto look = [&] {
    symmetric_sums<Codes>(slab, at, sums);
    symmetric_step(sums, at, error);
    for (int g = 0; g < kGroups; ++g) {
      if (best[g] < 0.0f || error[g] < best[g]) {
        best[g] = std::max(error[g], 0.0f);
        a[g] = at[g];
      }
    }
  };
  for (const float start : Codes::kStarts) {  // the code that the largest weight is to have
    for (int g = 0; g < kGroups; ++g) at[g] = extreme[g] / start;
    look();
  }
  // Rounding to the better a may change codes, which may make a better one.
  for (int round = 0; round < Codes::kRounds; ++round) {
    std::copy_n(a, kGroups, at);
    look();
  }
}

}  // namespace sterna::quant
