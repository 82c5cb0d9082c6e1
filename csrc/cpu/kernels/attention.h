/// Attention of a few queries over cached keys and values, tile by tile (a tile is a page of 64 keys).
///
/// Contract for one query (s: scores of a tile's visible keys, others left out):
///   score      q.k by fma over head_dim ascending, times scale, then softcap * tanh(score / softcap)
///   tile       m' = max(m, s); a = exp(m - m'); p = exp(s - m'); l = l a + sum p; o = o a, then o = fma(p_j, v_j, o),
///   j ascending
///              (sum p: four vectors of 16 keys added in order, then the reduction tree; invisible keys count as 0)
///   span       1,024 keys from a multiple of 1,024; every span starts from m = -inf, l = 0, o = 0
///   merge      left to right: m' = max(m1, m2); o = fma(o2, exp(m2 - m'), o1 exp(m1 - m')), l likewise
///   result     o / l
/// Tiles without a visible key are skipped, so a query's result depends on its own range of keys only.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/math.h"
#include "engine/batch.h"

namespace sterna::cpu {
namespace {

constexpr std::int64_t kSpanKeys = 1024;

template <class T>
inline Level::F load_cached(const T* p) {
  if constexpr (sizeof(T) == 2)
    return Level::load_half(p);
  else
    return Level::load(p);
}

/// Scores of one tile for Q queries into p[q][64], 16 keys a lane.
template <int Q, class T>
inline void tile_scores(const AttendArgs& a, const T* keys, float* p) {
  using V = Level;
  V::F acc[Q][4];
  for (int q = 0; q < Q; ++q) {
    for (int j = 0; j < 4; ++j) acc[q][j] = V::zero();
  }
  for (int d = 0; d < a.head_dim; ++d, keys += kPageSlots) {
    V::F key[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) key[j] = load_cached(keys + 16 * j);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const V::F x = V::set(a.queries[q][d]);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) acc[q][j] = V::fma(x, key[j], acc[q][j]);
    }
  }
  for (int q = 0; q < Q; ++q) {
    for (int j = 0; j < 4; ++j) {
      V::F s = V::mul(acc[q][j], V::set(a.scale));
      if (a.softcap != 0.0f) s = V::mul(V::set(a.softcap), tanh(V::div(s, V::set(a.softcap))));
      V::store(p + q * kPageSlots + 16 * j, s);
    }
  }
}

/// Lanes first..last of a vector of keys from v, the others from rest.
inline Level::F visible(Level::F v, int first, int last, Level::F rest) {
  if (first > 0) v = Level::keep_last_from(v, first > 15 ? 16 : first, rest);
  if (last < 15) v = Level::keep_first(v, last < 0 ? 0 : last + 1, rest);
  return v;
}

/// Turns scores into weights; m and l move on. Returns the factor for what was summed before.
inline float tile_softmax(float* p, int first, int last, float& m, float& l) {
  using V = Level;
  const V::F lowest = V::set(-__builtin_inff());
  V::F largest = lowest;
  for (int j = 0; j < 4; ++j) {
    largest = V::max(largest, visible(V::load(p + 16 * j), first - 16 * j, last - 16 * j, lowest));
  }
  const float tile_largest = V::largest(largest);
  const float next = m > tile_largest ? m : tile_largest;
  const float factor = exp(m - next);
  V::F sum = V::zero();
  for (int j = 0; j < 4; ++j) {
    const V::F weight = exp(V::sub(V::load(p + 16 * j), V::set(next)));
    const V::F kept = visible(weight, first - 16 * j, last - 16 * j, V::zero());
    V::store(p + 16 * j, kept);
    sum = V::add(sum, kept);
  }
  l = l * factor + V::sum(sum);
  m = next;
  return factor;
}

/// o = o * factor + p v for `W` vectors of the value dimension from `at` on.
template <int Q, int W, class T>
inline void tile_values(const T* values, int stride, int at, int first, int last, const float* p, const float* factors,
                        float* o) {
  using V = Level;
  V::F acc[Q][W];
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) acc[q][w] = V::mul(V::load(o + q * stride + at + 16 * w), V::set(factors[q]));
  }
  const T* row = values + first * stride + at;
  for (int j = first; j <= last; ++j, row += stride) {
    V::F v[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) v[w] = load_cached(row + 16 * w);
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) {
      const V::F weight = V::set(p[q * kPageSlots + j]);
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) acc[q][w] = V::fma(weight, v[w], acc[q][w]);
    }
  }
#pragma GCC unroll 4
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) V::store(o + q * stride + at + 16 * w, acc[q][w]);
  }
}

template <int Q, class T>
inline void attend_queries(const AttendArgs& a) {
  using V = Level;
  const int stride = a.value_stride;
  float* p = a.scratch;
  float* span_o = p + Q * kPageSlots;
  float* o = span_o + Q * stride;
  float m[Q];
  float l[Q];
  for (int q = 0; q < Q; ++q) {
    m[q] = -__builtin_inff();
    l[q] = 0.0f;
  }
  for (int i = 0; i < Q * stride; i += 16) V::store(o + i, V::zero());

  for (std::int64_t span = a.first_key / kSpanKeys; span <= a.last_key / kSpanKeys; ++span) {
    float span_m[Q];
    float span_l[Q];
    for (int q = 0; q < Q; ++q) {
      span_m[q] = -__builtin_inff();
      span_l[q] = 0.0f;
    }
    for (int i = 0; i < Q * stride; i += 16) V::store(span_o + i, V::zero());
    const std::int64_t from = span * kSpanKeys > a.first_key ? span * kSpanKeys : a.first_key;
    const std::int64_t to = (span + 1) * kSpanKeys - 1 < a.last_key ? (span + 1) * kSpanKeys - 1 : a.last_key;
    for (std::int64_t tile = from / kPageSlots; tile <= to / kPageSlots; ++tile) {
      const std::int64_t base = tile * kPageSlots;
      const int first = from > base ? static_cast<int>(from - base) : 0;
      const int last = to < base + kPageSlots - 1 ? static_cast<int>(to - base) : kPageSlots - 1;
      tile_scores<Q>(a, reinterpret_cast<const T*>(a.key_tiles[tile]), p);
      float factors[Q];
      for (int q = 0; q < Q; ++q) factors[q] = tile_softmax(p + q * kPageSlots, first, last, span_m[q], span_l[q]);
      const T* values = reinterpret_cast<const T*>(a.value_tiles[tile]);
      int at = 0;
      for (; at + 64 <= stride; at += 64) tile_values<Q, 4>(values, stride, at, first, last, p, factors, span_o);
      for (; at < stride; at += 16) tile_values<Q, 1>(values, stride, at, first, last, p, factors, span_o);
    }
    for (int q = 0; q < Q; ++q) {
      const float next = m[q] > span_m[q] ? m[q] : span_m[q];
      const float before = exp(m[q] - next);
      const float here = exp(span_m[q] - next);
      l[q] = __builtin_fmaf(span_l[q], here, l[q] * before);
      m[q] = next;
      for (int i = q * stride; i < (q + 1) * stride; i += 16) {
        V::store(o + i, V::fma(V::load(span_o + i), V::set(here), V::mul(V::load(o + i), V::set(before))));
      }
    }
  }
  for (int q = 0; q < Q; ++q) {
    const V::F sum = V::set(l[q]);
    for (int i = 0; i < a.value_dim; i += 16) {
      const int count = a.value_dim - i < 16 ? a.value_dim - i : 16;
      V::store_partial(a.outputs[q] + i, V::div(V::load(o + q * stride + i), sum), count);
    }
  }
}

template <int Q, class T>
inline void attend_up_to(const AttendArgs& a) {
  if (a.count == Q) {
    attend_queries<Q, T>(a);
  } else if constexpr (Q > 1) {
    attend_up_to<Q - 1, T>(a);
  }
}

template <class T>
void attend(const AttendArgs& a) {
  attend_up_to<Level::kAttentionQueries, T>(a);
}

}  // namespace
}  // namespace sterna::cpu
