/// Kernels of recurrent layers. The recurrence runs token by token, in both lists of steps: a state's bits depend on
/// the tokens alone, not on how they came.
#pragma once

#include <cstdint>

#include "cpu/kernels/lanes.h"
#include "cpu/kernels/math.h"
#include "cpu/recurrent_kernels.h"

namespace sterna::cpu {
namespace {

/// Sums begin with the bias, or zero; one fma for each input.
void short_conv(const ConvArgs& a) {
  for_lanes(a.channels, [&](std::int64_t i, int count) {
    Level::F sum = a.bias == nullptr ? Level::zero() : load_lanes(a.bias + i, count);
    for (int j = 0; j < a.kernel; ++j) {
      const Level::F x = a.inputs[j] == nullptr ? Level::zero() : load_lanes(a.inputs[j] + i, count);
      sum = Level::fma(x, load_lanes(a.w + j * a.w_stride + i, count), sum);
    }
    store_lanes(a.y + i, sum, count);
  });
}

/// `rows` rows of the state from row `first` on: s = fma(decay, s, b u) with u = dt x and decay = exp(dt a); products
/// with c are summed by fma into 16 lanes, then by the reduction tree; y = fma(d, x, that).
template <int rows, bool per_row>
inline void ssm_rows(const SsmArgs& a, int first, Level::F shared_decay) {
  using V = Level;
  V::F sums[rows];
  V::F inputs[rows];
  V::F steps[rows];
  for (int r = 0; r < rows; ++r) {
    const float dt = a.dt[per_row ? first + r : 0];
    sums[r] = V::zero();
    inputs[r] = V::set(dt * a.x[first + r]);
    steps[r] = V::set(dt);
  }
  const std::int64_t begin = std::int64_t{first} * a.n;
  for_lanes(a.n, [&](std::int64_t i, int count) {
    const V::F b = load_lanes(a.b + i, count);
    const V::F c = load_lanes(a.c + i, count);
    for (int r = 0; r < rows; ++r) {
      const std::int64_t at = begin + std::int64_t{r} * a.n + i;
      V::F decay = shared_decay;
      if constexpr (per_row) decay = exp(V::mul(steps[r], load_lanes(a.a + at, count)));
      const V::F old = a.state_in == nullptr ? V::zero() : load_lanes(a.state_in + at, count);
      const V::F state = V::fma(decay, old, V::mul(b, inputs[r]));
      store_lanes(a.state_out + at, state, count);
      sums[r] = V::fma(state, c, sums[r]);
    }
  });
  for (int r = 0; r < rows; ++r) {
    a.y[first + r] = __builtin_fmaf(a.d[per_row ? first + r : 0], a.x[first + r], V::sum(sums[r]));
  }
}

template <bool per_row>
inline void ssm_all_rows(const SsmArgs& a) {
  const Level::F decay = per_row ? Level::zero() : exp(Level::set(*a.dt * *a.a));
  int first = 0;
  for (; first + 4 <= a.rows; first += 4) ssm_rows<4, per_row>(a, first, decay);
  for (; first < a.rows; ++first) ssm_rows<1, per_row>(a, first, decay);
}

void ssm_scan(const SsmArgs& a) { a.per_row ? ssm_all_rows<true>(a) : ssm_all_rows<false>(a); }

/// Of up to 16 * `vectors` columns: memory = the sum of s k over the rows, in their order by fma; delta = (v - decay
/// memory) beta; s = fma(k, delta, decay s); y = the sum of s q, likewise.
template <int vectors>
inline void delta_columns(const DeltaArgs& a, std::int64_t first, int last_count, Level::F decay) {
  using V = Level;
  const auto count = [&](int c) { return c + 1 < vectors ? 16 : last_count; };
  const auto load_state = [&](int row, int c) {
    return a.state_in == nullptr ? V::zero()
                                 : load_lanes(a.state_in + row * std::int64_t{a.value_dim} + first + 16 * c, count(c));
  };
  V::F delta[vectors];
  V::F sums[vectors];
  for (int c = 0; c < vectors; ++c) delta[c] = sums[c] = V::zero();
  for (int row = 0; row < a.key_dim; ++row) {
    const V::F k = V::set(a.k[row]);
    for (int c = 0; c < vectors; ++c) delta[c] = V::fma(load_state(row, c), k, delta[c]);
  }
  const V::F beta = V::set(a.beta);
  for (int c = 0; c < vectors; ++c) {
    delta[c] = V::mul(V::sub(load_lanes(a.v + first + 16 * c, count(c)), V::mul(decay, delta[c])), beta);
  }
  for (int row = 0; row < a.key_dim; ++row) {
    const V::F k = V::set(a.k[row]);
    const V::F q = V::set(a.q[row]);
    for (int c = 0; c < vectors; ++c) {
      const V::F state = V::fma(k, delta[c], V::mul(decay, load_state(row, c)));
      store_lanes(a.state_out + row * std::int64_t{a.value_dim} + first + 16 * c, state, count(c));
      sums[c] = V::fma(state, q, sums[c]);
    }
  }
  for (int c = 0; c < vectors; ++c) store_lanes(a.y + first + 16 * c, sums[c], count(c));
}

void delta_rule(const DeltaArgs& a) {
  const Level::F decay = exp(Level::set(a.g));
  std::int64_t first = 0;
  for (; first + 64 <= a.value_dim; first += 64) delta_columns<4>(a, first, 16, decay);
  for (; first < a.value_dim; first += 16) {
    const std::int64_t left = a.value_dim - first;
    delta_columns<1>(a, first, left < 16 ? static_cast<int>(left) : 16, decay);
  }
}

}  // namespace
}  // namespace sterna::cpu
