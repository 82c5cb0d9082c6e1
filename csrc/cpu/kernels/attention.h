/// Attention of some queries over cached keys and values, tile by tile (a tile is a page of 64 keys). Queries go
/// through a tile together; only values that not all of them see are added a row at a time.
///
/// Contract for one query (s: scores of a tile's visible keys, others left out):
///   score      q.k by fma over head_dim ascending, times scale, then softcap * tanh(score / softcap), then
///              fma(-slope, |position - key|, score) (ALiBi, arXiv:2108.12409), then score + bias of the key
///   tile       m' = max(m, s); a = exp(m - m'); p = exp(s - m'); l = l a + sum p; o = o a, then o = fma(p_j, v_j, o)
///              with j ascending
///              (sum p: four vectors of 16 keys added in order, then the reduction tree; invisible keys count as 0)
///   span       1,024 keys from a multiple of 1,024; every span starts from m = -inf, l = 0, o = 0
///   merge      left to right: m' = max(m1, m2); o = fma(o2, exp(m2 - m'), o1 exp(m1 - m')), l likewise
///   sink       merged last, as a span of one key without value: m' = max(m, sink); l = fma(l, exp(m - m'), exp(sink -
///              m')); o = o exp(m - m')
///   result     o / l
/// Tiles without a visible key are skipped, so a query's result depends on its own range of keys only. k and v are the
/// cached numbers as floats: f32 and f16 as they are, q8_0 as code * scale (kernels/kv_cache.h), which is exact.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/kernels/kv_cache.h"
#include "cpu/kernels/math.h"
#include "engine/batch.h"

namespace sterna::cpu {
namespace {

constexpr std::int64_t kSpanKeys = 1024;

/// Lanes first..last of a vector of keys from v, the others from rest.
inline Level::F visible(Level::F v, int first, int last, Level::F rest) {
  if (first > 0) v = Level::keep_last_from(v, first > 15 ? 16 : first, rest);
  if (last < 15) v = Level::keep_first(v, last < 0 ? 0 : last + 1, rest);
  return v;
}

/// Vectors of keys or values that Q queries meet at once, so that sums stay in registers.
template <int Q>
constexpr int kVectors = Q > 4                           ? 2
                         : Level::kAttentionQueries >= 4 ? 4
                                                         : 2;

/// 0 .. 15
alignas(64) constexpr float kLanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// score - slope * |position - key| of 16 keys from `key` on, for one query.
inline Level::F add_alibi(const AttendArgs& a, int query, std::int64_t key, Level::F score) {
  using V = Level;
  const std::int64_t from = key - a.positions[query / a.heads];
  const V::F distance = V::add(V::load(kLanes), V::set(static_cast<float>(from)));
  return V::fma(V::set(-a.slopes[query % a.heads]), magnitude(distance), score);
}

/// Scores of keys first_key .. last_key of one tile (and of neighbours that fill its vectors) for Q queries from
/// `query` on into p[q][64], 16 keys a vector. Asks for the next tile's keys, and for its values where so few queries
/// go together that memory sets the pace.
template <int Q, class Cache>
inline void tile_scores(const AttendArgs& a, int query, std::int64_t tile, const typename Cache::Code* keys,
                        const typename Cache::Code* next, const typename Cache::Code* next_values, int first_key,
                        int last_key, float* p) {
  using V = Level;
  constexpr int J = kVectors<Q>;
  const float* const* queries = a.queries + query;
  for (int first = first_key / (16 * J) * J; 16 * first <= last_key; first += J) {
    V::F acc[Q][J];
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) acc[q][j] = V::zero();
    }
    const typename Cache::Code* at = keys + 16 * first;
    int d = 0;
    do {  // once, or for each group of elements that share scales
      int end = a.head_dim;
      V::F scales[J];
      if constexpr (Cache::kScaled) {
        if (end > d + kKvGroup) end = d + kKvGroup;
        const std::uint16_t* halves = group_scales<Cache>(keys, a.head_dim, d) + 16 * first;
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) scales[j] = V::load_half(halves + 16 * j);
        __builtin_prefetch(group_scales<Cache>(next, a.head_dim, d) + 16 * first);
      }
      for (; d < end; ++d, at += kPageSlots) {
        // 64 keys of a byte are one cache line.
        if (sizeof(*at) > 1 || first == 0) __builtin_prefetch(next + (at - keys));
        if (J == 4) __builtin_prefetch(next_values + (at - keys));
        V::F key[J];
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
          key[j] = Cache::load(at + 16 * j);
          if constexpr (Cache::kScaled) key[j] = V::mul(key[j], scales[j]);
        }
#pragma GCC unroll 12
        for (int q = 0; q < Q; ++q) {
          const V::F x = V::set(queries[q][d]);
#pragma GCC unroll 4
          for (int j = 0; j < J; ++j) acc[q][j] = V::fma(x, key[j], acc[q][j]);
        }
      }
    } while (Cache::kScaled && d < a.head_dim);
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      const V::F scale = V::set(a.scales[(query + q) / a.heads]);
#pragma GCC unroll 4
      for (int j = 0; j < J; ++j) {
        V::F s = V::mul(acc[q][j], scale);
        if (a.softcap != 0.0f) s = V::mul(V::set(a.softcap), tanh(V::div(s, V::set(a.softcap))));
        if (a.slopes != nullptr) s = add_alibi(a, query + q, tile * kPageSlots + 16 * (first + j), s);
        if (a.biases != nullptr) {
          const std::int64_t key = tile * kPageSlots + 16 * (first + j) - a.biases_from;
          s = V::add(s, V::load(a.biases[query + q] + key));
        }
        V::store(p + q * kPageSlots + 16 * (first + j), s);
      }
    }
  }
}

/// o = o * factor + p v for Q queries and W vectors of the value dimension; halves are the scales of these, if any.
template <int Q, int W, class Cache>
inline void tile_values(const typename Cache::Code* values, const std::uint16_t* halves, int stride, int first,
                        int last, const float* p, const float* factors, float* o) {
  using V = Level;
  // As floats, since the loop below wants one at a time.
  constexpr int kGroups = Cache::kScaled ? (W + 1) / 2 : 1;
  alignas(64) float scales[kGroups][Cache::kScaled ? kPageSlots : 1];
  if constexpr (Cache::kScaled) {
    for (int i = 0; i < kGroups * kPageSlots; i += 16) V::store(scales[0] + i, V::load_half(halves + i));
  }
  V::F acc[Q][W];
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) acc[q][w] = V::mul(V::load(o + q * stride + 16 * w), V::set(factors[q]));
  }
  const typename Cache::Code* row = values + first * stride;
  for (int j = first; j <= last; ++j, row += stride) {
    V::F v[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) {
      v[w] = Cache::load(row + 16 * w);
      if constexpr (Cache::kScaled) v[w] = V::mul(v[w], V::set(scales[w / 2][j]));
    }
#pragma GCC unroll 12
    for (int q = 0; q < Q; ++q) {
      const V::F weight = V::set(p[q * kPageSlots + j]);
#pragma GCC unroll 4
      for (int w = 0; w < W; ++w) acc[q][w] = V::fma(weight, v[w], acc[q][w]);
    }
  }
#pragma GCC unroll 12
  for (int q = 0; q < Q; ++q) {
#pragma GCC unroll 4
    for (int w = 0; w < W; ++w) V::store(o + q * stride + 16 * w, acc[q][w]);
  }
}

/// Calls fn<Q>(first query) for the queries begin .. end - 1, as many at once as the level has registers for.
template <class Fn>
inline void for_queries(int begin, int end, Fn fn) {
  constexpr int most = Level::kAttentionQueries;
  while (begin < end) {
    const int left = end - begin;
    const auto take = [&]<int Q>() {
      fn.template operator()<Q>(begin);
      begin += Q;
    };
    if constexpr (most >= 12) {
      if (left >= 12) {
        take.template operator()<12>();
        continue;
      }
      if (left >= 8) {
        take.template operator()<8>();
        continue;
      }
      if (left >= 4) {
        take.template operator()<4>();
        continue;
      }
      if (left == 3) {
        take.template operator()<3>();
        continue;
      }
    }
    if constexpr (most >= 2) {
      if (left >= 2) {
        take.template operator()<2>();
        continue;
      }
    }
    take.template operator()<1>();
  }
}

/// Running maximum and sum of each query; values beyond the queries are of no interest.
struct RunningSums {
  alignas(64) float m[kMaxAttentionQueries];
  alignas(64) float l[kMaxAttentionQueries];

  void reset() {
    for (int q = 0; q < kMaxAttentionQueries; ++q) {
      m[q] = -__builtin_inff();
      l[q] = 0.0f;
    }
  }
};

/// factors[q] = exp(before[q] - after[q]), q from begin to end - 1.
inline void exp_differences(const float* before, const float* after, float* factors, int begin, int end) {
  using V = Level;
  for (int q = begin / 16 * 16; q < end; q += 16) {
    V::store(factors + q, exp(V::sub(V::load(before + q), V::load(after + q))));
  }
}

/// The keys of a tile that each row sees, as 0..63; none where first > last.
struct SeenKeys {
  int first[kMaxAttentionQueries];
  int last[kMaxAttentionQueries];
};

/// Turns the scores of queries begin .. end - 1 into weights, 0 for neighbours of seen keys; sums move on. `factors` is
/// for what was summed before.
inline void tile_softmax(float* p, int heads, int begin, int end, const SeenKeys& seen, RunningSums& sums,
                         float* factors) {
  using V = Level;
  const V::F lowest = V::set(-__builtin_inff());
  alignas(64) float next[kMaxAttentionQueries];
  for (int i = 0; i < kMaxAttentionQueries; i += 16) V::store(next + i, V::load(sums.m + i));
  for (int q = begin; q < end; ++q) {
    const float* scores = p + q * kPageSlots;
    const int first = seen.first[q / heads];
    const int last = seen.last[q / heads];
    V::F largest = lowest;
    for (int j = first / 16; 16 * j <= last; ++j) {
      largest = V::max(largest, visible(V::load(scores + 16 * j), first - 16 * j, last - 16 * j, lowest));
    }
    const float tile_largest = V::largest(largest);
    next[q] = sums.m[q] > tile_largest ? sums.m[q] : tile_largest;
  }
  alignas(64) float all[kMaxAttentionQueries];
  exp_differences(sums.m, next, all, begin, end);
  for (int q = begin; q < end; ++q) {
    float* scores = p + q * kPageSlots;
    const int first = seen.first[q / heads];
    const int last = seen.last[q / heads];
    V::F sum = V::zero();
    for (int j = first / 16; 16 * j <= last; ++j) {
      const V::F weight = exp(V::sub(V::load(scores + 16 * j), V::set(next[q])));
      const V::F kept = visible(weight, first - 16 * j, last - 16 * j, V::zero());
      V::store(scores + 16 * j, kept);
      sum = V::add(sum, kept);
    }
    factors[q] = all[q];
    sums.l[q] = sums.l[q] * all[q] + V::sum(sum);
    sums.m[q] = next[q];
  }
}

/// What one call works with.
struct AttendState {
  float* p;             // [queries][64]
  float* span_o;        // [queries][stride], of the span
  float* o;             // [queries][stride], of the spans before
  void* values;         // a page's values, [64][stride] and scales, where they are turned out of its keys
  std::int64_t turned;  // the page whose values they are
  RunningSums span;
  RunningSums all;
};

/// The values of a tile, [64][stride]; those of a cache that stores keys only, [head_dim][64], are turned out of them.
template <class Cache>
inline const typename Cache::Code* tile_values_of(const AttendArgs& a, AttendState& state, std::int64_t tile) {
  using Code = typename Cache::Code;
  if (a.value_tiles != nullptr) return reinterpret_cast<const Code*>(a.value_tiles[tile]);
  auto* values = static_cast<Code*>(state.values);
  if (state.turned == tile) return values;
  state.turned = tile;
  const auto* keys = reinterpret_cast<const Code*>(a.key_tiles[tile]);
  for (int first = 0; first < a.value_stride; first += 16) {
    const int count = a.value_dim - first < 16 ? a.value_dim - first : 16;
    const Code* column = keys + first * kPageSlots;
    Code* row = values + first;
    for (int j = 0; j < kPageSlots; ++j, ++column, row += a.value_stride) {
      if (count == 16) {
        for (int d = 0; d < 16; ++d) row[d] = column[d * kPageSlots];
      } else {
        for (int d = 0; d < 16; ++d) row[d] = d < count ? column[d * kPageSlots] : Code{};
      }
    }
  }
  if constexpr (Cache::kScaled) {
    const std::uint16_t* from = group_scales<Cache>(keys, a.head_dim, 0);
    auto* to = reinterpret_cast<std::uint16_t*>(values + kPageSlots * a.value_stride);
    for (int i = 0; i < (a.value_dim + kKvGroup - 1) / kKvGroup * kPageSlots; ++i) to[i] = from[i];
  }
  return values;
}

/// o = o * factor + p v for queries begin .. end - 1 and keys first .. last of a tile; the factors become 1.
template <class Cache>
inline void add_values(const AttendArgs& a, AttendState& state, std::int64_t tile, int begin, int end, int first,
                       int last, float* factors) {
  if (first > last) return;
  const auto* values = tile_values_of<Cache>(a, state, tile);
  for_queries(begin, end, [&]<int Q>(int q) {
    const float* p = state.p + q * kPageSlots;
    float* o = state.span_o + q * a.value_stride;
    int at = 0;
    const auto add_vectors = [&]<int W>() {
      for (; at + 16 * W <= a.value_stride; at += 16 * W) {
        tile_values<Q, W, Cache>(values + at, group_scales<Cache>(values, a.value_stride, at), a.value_stride, first,
                                 last, p, factors + q, o + at);
      }
    };
    add_vectors.template operator()<kVectors<Q>>();
    add_vectors.template operator()<1>();
  });
  for (int q = begin; q < end; ++q) factors[q] = 1.0f;
}

/// One tile for rows begin .. end - 1, which all see some of its keys.
template <class Cache>
inline void attend_tile(const AttendArgs& a, AttendState& state, std::int64_t tile, bool is_last, int begin, int end,
                        const SeenKeys& seen) {
  using Code = typename Cache::Code;
  int first = seen.first[begin], common_first = first;
  int last = seen.last[begin], common_last = last;
  for (int row = begin + 1; row < end; ++row) {
    first = seen.first[row] < first ? seen.first[row] : first;
    common_first = seen.first[row] > common_first ? seen.first[row] : common_first;
    last = seen.last[row] > last ? seen.last[row] : last;
    common_last = seen.last[row] < common_last ? seen.last[row] : common_last;
  }
  const int heads = a.heads;
  const Code* keys = reinterpret_cast<const Code*>(a.key_tiles[tile]);
  const Code* next = reinterpret_cast<const Code*>(a.key_tiles[is_last ? tile : tile + 1]);
  const auto* const* tiles = a.value_tiles == nullptr ? a.key_tiles : a.value_tiles;
  const Code* next_values = reinterpret_cast<const Code*>(tiles[is_last ? tile : tile + 1]);
  for_queries(begin * heads, end * heads, [&]<int Q>(int q) {
    tile_scores<Q, Cache>(a, q, tile, keys, next, next_values, first, last, state.p + q * kPageSlots);
  });
  alignas(64) float factors[kMaxAttentionQueries];
  tile_softmax(state.p, heads, begin * heads, end * heads, seen, state.span, factors);

  // A value that a row does not see must not meet it, not even with weight 0: it may be NaN.
  const auto add_row = [&](int row, int from, int to) {
    add_values<Cache>(a, state, tile, row * heads, (row + 1) * heads, from, to, factors);
  };
  if (common_first > common_last) {
    for (int row = begin; row < end; ++row) add_row(row, seen.first[row], seen.last[row]);
    return;
  }
  for (int row = begin; row < end; ++row) add_row(row, seen.first[row], common_first - 1);
  add_values<Cache>(a, state, tile, begin * heads, end * heads, common_first, common_last, factors);
  for (int row = begin; row < end; ++row) add_row(row, common_last + 1, seen.last[row]);
}

/// The tiles of keys from .. to, all of one span.
template <class Cache>
inline void attend_span(const AttendArgs& a, AttendState& state, std::int64_t from, std::int64_t to) {
  const std::int64_t last_tile = to / kPageSlots;
  for (std::int64_t tile = from / kPageSlots; tile <= last_tile; ++tile) {
    const std::int64_t base = tile * kPageSlots;
    SeenKeys seen;
    for (int row = 0; row < a.rows; ++row) {
      const std::int64_t first = (a.first_keys[row] > from ? a.first_keys[row] : from) - base;
      const std::int64_t last = (a.last_keys[row] < to ? a.last_keys[row] : to) - base;
      seen.first[row] = static_cast<int>(first > 0 ? (first < kPageSlots ? first : kPageSlots) : 0);
      seen.last[row] = static_cast<int>(last < kPageSlots - 1 ? (last >= 0 ? last : -1) : kPageSlots - 1);
    }
    const auto sees = [&](int row) { return seen.first[row] <= seen.last[row]; };
    for (int row = 0; row < a.rows;) {
      int end = row + 1;
      if (sees(row)) {
        while (end < a.rows && sees(end)) ++end;
        attend_tile<Cache>(a, state, tile, tile == last_tile, row, end, seen);
      }
      row = end;
    }
  }
}

/// all = all merged with the span.
inline void merge_span(const AttendArgs& a, AttendState& state) {
  using V = Level;
  const int count = a.rows * a.heads;
  alignas(64) float next[kMaxAttentionQueries];
  alignas(64) float before[kMaxAttentionQueries];
  alignas(64) float here[kMaxAttentionQueries];
  for (int q = 0; q < kMaxAttentionQueries; ++q) {
    next[q] = state.all.m[q] > state.span.m[q] ? state.all.m[q] : state.span.m[q];
  }
  exp_differences(state.all.m, next, before, 0, count);
  exp_differences(state.span.m, next, here, 0, count);
  for (int q = 0; q < count; ++q) {
    // A row that sees nothing of the span stays as it is.
    if (state.span.m[q] == -__builtin_inff()) continue;
    state.all.l[q] = __builtin_fmaf(state.span.l[q], here[q], state.all.l[q] * before[q]);
    state.all.m[q] = next[q];
    for (int i = q * a.value_stride; i < (q + 1) * a.value_stride; i += 16) {
      const V::F kept = V::mul(V::load(state.o + i), V::set(before[q]));
      V::store(state.o + i, V::fma(V::load(state.span_o + i), V::set(here[q]), kept));
    }
  }
}

/// all = all merged with the sinks.
inline void merge_sinks(const AttendArgs& a, AttendState& state) {
  using V = Level;
  const int count = a.rows * a.heads;
  alignas(64) float sinks[kMaxAttentionQueries] = {};
  alignas(64) float next[kMaxAttentionQueries];
  alignas(64) float before[kMaxAttentionQueries];
  alignas(64) float here[kMaxAttentionQueries];
  for (int q = 0; q < count; ++q) sinks[q] = a.sinks[q % a.heads];
  for (int q = 0; q < kMaxAttentionQueries; ++q) next[q] = state.all.m[q] > sinks[q] ? state.all.m[q] : sinks[q];
  exp_differences(state.all.m, next, before, 0, count);
  exp_differences(sinks, next, here, 0, count);
  for (int q = 0; q < count; ++q) {
    state.all.l[q] = __builtin_fmaf(state.all.l[q], before[q], here[q]);
    for (int i = q * a.value_stride; i < (q + 1) * a.value_stride; i += 16) {
      V::store(state.o + i, V::mul(V::load(state.o + i), V::set(before[q])));
    }
  }
}

template <class Cache>
void attend(const AttendArgs& a) {
  using V = Level;
  const int count = a.rows * a.heads;
  const int stride = a.value_stride;
  AttendState state;
  state.p = a.scratch;
  state.span_o = state.p + count * kPageSlots;
  state.o = state.span_o + count * stride;
  state.values = state.o + count * stride;
  state.turned = -1;
  state.all.reset();
  for (int i = 0; i < count * stride; i += 16) V::store(state.o + i, V::zero());

  std::int64_t first_key = a.first_keys[0];
  std::int64_t last_key = a.last_keys[0];
  for (int row = 1; row < a.rows; ++row) {
    if (a.first_keys[row] < first_key) first_key = a.first_keys[row];
    if (a.last_keys[row] > last_key) last_key = a.last_keys[row];
  }
  for (std::int64_t span = first_key / kSpanKeys; span <= last_key / kSpanKeys; ++span) {
    state.span.reset();
    for (int i = 0; i < count * stride; i += 16) V::store(state.span_o + i, V::zero());
    const std::int64_t begin = span * kSpanKeys;
    const std::int64_t end = begin + kSpanKeys - 1;
    attend_span<Cache>(a, state, begin > first_key ? begin : first_key, end < last_key ? end : last_key);
    merge_span(a, state);
  }
  if (a.sinks != nullptr) merge_sinks(a, state);
  for (int q = 0; q < count; ++q) {
    const V::F sum = V::set(state.all.l[q]);
    for (int i = 0; i < a.value_dim; i += 16) {
      const int lanes = a.value_dim - i < 16 ? a.value_dim - i : 16;
      V::store_partial(a.outputs[q] + i, V::div(V::load(state.o + q * stride + i), sum), lanes);
    }
  }
}

}  // namespace
}  // namespace sterna::cpu
