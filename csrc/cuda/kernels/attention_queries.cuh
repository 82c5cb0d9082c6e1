/// The queries that a block of attention computes together, and what is summed for each of them.
///
/// One query, as cpu/kernels/attention.h has it but for the order of sums:
///   score   (q.k * factor), softcap * tanh(score / softcap), fma(-slope, |position - key|, score), + bias of the key
///   tile    m' = max(m, s); a = exp(m - m'); p = exp(s - m'); l = l a + sum p; o = o a + p v
///   span    256 keys from a multiple of 256; every span starts from m = -inf, l = 0, o = 0
///   merge   left to right: m' = max(m1, m2); o = fma(o2, exp(m2 - m'), o1 exp(m1 - m')), l likewise
///   sink    merged last; then o / l
/// p, l and o may all carry one constant factor, the unit. What other queries the block has changes nothing: to a query
/// that does not see a key its p is 0, and no value is added to it that is not finite.
#pragma once

#include "cuda/kernels/attention_keys.cuh"
#include "cuda/kernels/rounding.cuh"

namespace sterna::cuda {

/// Neighbouring rows of one sequence, and query heads that share a key head.
struct QueryBlock {
  std::int32_t sequence;
  std::int32_t first_row, rows;
  std::int32_t key_head;
  std::int32_t first_head, heads;  // of the queries

  __device__ int count() const { return rows * heads; }
  /// Query i is that of head i % heads of row i / heads. Places beyond the last one repeat it.
  __device__ int clamp(int query) const { return query < count() ? query : count() - 1; }
  __device__ std::int32_t row(int query) const { return first_row + clamp(query) / heads; }
  __device__ std::int32_t head(int query) const { return first_head + clamp(query) % heads; }
};

/// How rows and heads are put together, which results do not depend on.
struct QueryShape {
  std::int32_t rows, heads;
};

/// Sequence s has the places from first_rows[s] / rows + s on, one for each `rows` of its rows: never more than there
/// are before the next one's.
__device__ inline bool find_queries(const AttendArguments& a, const DeviceBatch& batch, QueryShape shape,
                                    QueryBlock& block) {
  const std::int32_t group = a.query_heads / a.layer.num_heads;
  const std::int32_t parts = (group + shape.heads - 1) / shape.heads;
  auto item = static_cast<std::int32_t>(gridDim.x - 1 - blockIdx.x);  // the last rows first: they see most keys
  const std::int32_t part = item % parts;
  item /= parts;
  block.key_head = item % a.layer.num_heads;
  item /= a.layer.num_heads;
  block.first_head = block.key_head * group + part * shape.heads;
  block.heads = group - part * shape.heads < shape.heads ? group - part * shape.heads : shape.heads;
  if (shape.rows == 1) {
    if (item >= num_tokens(batch)) return false;
    block.sequence = batch.sequences[item];
    block.first_row = item;
    block.rows = 1;
    return true;
  }
  std::int32_t low = 0, high = num_sequences(batch);
  if (high == 0) return false;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    if (batch.first_rows[middle] / shape.rows + middle <= item) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const std::int32_t first = batch.first_rows[low];
  const std::int32_t end = batch.last_rows[first] + 1;
  const std::int32_t place = item - first / shape.rows - low;
  block.sequence = low;
  block.first_row = first + place * shape.rows;
  block.rows = end - block.first_row < shape.rows ? end - block.first_row : shape.rows;
  return block.rows > 0;
}

/// What scores are made of beside q.k.
struct QueryTerms {
  float factor;
  std::int32_t head;
  std::int32_t position;
  KeyRange keys;

  __device__ bool sees(std::int32_t key) const { return key >= keys.first && key <= keys.last; }
  __device__ bool sees_any_of(std::int32_t tile_key) const {
    return keys.first < tile_key + kPageSlots && keys.last >= tile_key;
  }
  __device__ bool sees_all_of(std::int32_t tile_key) const {
    return keys.first <= tile_key && keys.last >= tile_key + kPageSlots - 1;
  }
  __device__ bool sees_span(std::int32_t span) const {
    return span >= keys.first_span() && span < keys.first_span() + keys.num_spans();
  }
};

__device__ inline float temperature(const AttendArguments& a, std::int64_t position) {
  if (a.temperature_scale == 0.0) return 1.0f;
  const std::int64_t length = (position + a.temperature_offset) / a.temperature_length + 1;
  return static_cast<float>(1.0 + a.temperature_scale * log(static_cast<double>(length)));
}

__device__ inline QueryTerms terms_of(const AttendArguments& a, const DeviceBatch& batch, const QueryBlock& block,
                                      int query) {
  const std::int32_t row = block.row(query);
  QueryTerms terms;
  terms.position = batch.positions[row];
  terms.head = block.head(query);
  terms.factor = a.scale * temperature(a, terms.position);
  terms.keys = seen_keys(a, batch, row);
  return terms;
}

__device__ inline float score(const AttendArguments& a, const QueryTerms& terms, float product, std::int32_t key) {
  float s = product * terms.factor;
  if (a.softcap != 0.0f) s = a.softcap * tangent(s / a.softcap);
  const std::int32_t offset = key - terms.position;
  if (a.slopes != nullptr) s = fmaf(-a.slopes[terms.head], fabsf(static_cast<float>(offset)), s);
  if (a.relative_bias != nullptr) {
    const auto farthest = static_cast<std::int32_t>(a.farthest);
    const std::int32_t near = offset < -farthest ? -farthest : offset > farthest ? farthest : offset;
    s = s + a.relative_bias[terms.head * (2 * a.farthest + 1) + farthest + near];
  }
  return s;
}

/// How two running sums become one.
struct Merge {
  float m, before, here;

  __device__ Merge(float m1, float m2) : m(m1 > m2 ? m1 : m2), before(exponential(m1 - m)), here(exponential(m2 - m)) {}
  __device__ float operator()(float first, float second) const { return fmaf(second, here, first * before); }
};

/// Turns a query's sums into its result.
struct Finish {
  float before, l;

  __device__ Finish(const AttendArguments& a, std::int32_t head, float m, float sum, float unit)
      : before(1.0f), l(sum) {
    if (a.sinks == nullptr) return;
    const Merge merge(m, a.sinks[head]);
    before = merge.before;
    l = fmaf(sum, merge.before, merge.here * unit);
  }
  __device__ float operator()(float o) const { return o * before / l; }
};

__device__ inline float* result_of(const AttendArguments& a, std::int32_t row, std::int32_t head) {
  return row_of(a.y, row) + std::int64_t{head} * a.layer.value_dim;
}

/// Leaves the largest magnitude of what a group of lanes has written of a row: `lanes` of them, from a multiple of it
/// on. All lanes of the warp come here; those with is_written false have written nothing.
template <int lanes>
__device__ inline void leave_largest(const AttendArguments& a, std::int32_t row, bool is_written,
                                     std::uint32_t largest) {
  if (a.maxima.data == nullptr) return;
#pragma unroll
  for (int distance = 1; distance < lanes; distance *= 2) {
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, largest, distance);
    if (other > largest) largest = other;
  }
  if (is_written && lane_id() % lanes == 0) atomicMax(a.maxima.data + row, largest);
}

/// m, l and o of a span of a query, spans being counted from the first that it sees.
__device__ inline float* partial_of(const AttendArguments& a, std::int32_t row, std::int32_t head, std::int32_t span) {
  return a.partial +
         ((std::int64_t{row} * a.query_heads + head) * a.max_spans + span) * (2 + std::int64_t{a.layer.value_dim});
}

/// Merges what blocks wrote of a query, by one warp: the maximum so far at 32 spans at once, then span by span.
template <bool leaves_maxima>
__device__ inline void merge_partial(const AttendArguments& a, std::int32_t row, std::int32_t head, std::int32_t spans,
                                     float unit) {
  constexpr int kValues = 4;  // of a lane at once
  const std::int64_t stride = 2 + std::int64_t{a.layer.value_dim};
  std::uint32_t largest_result = 0;
  for (std::int32_t first = 0; first < a.layer.value_dim; first += kValues * kWarp) {
    float m = -INFINITY, l = 0.0f, o[kValues] = {};
    for (std::int32_t begin = 0; begin < spans; begin += kWarp) {
      const float* from = partial_of(a, row, head, begin);
      const bool is_span = begin + lane_id() < spans;
      const float own = is_span ? __ldcg(from + lane_id() * stride) : -INFINITY;
      const float sum = is_span ? __ldcg(from + lane_id() * stride + 1) : 0.0f;
      float largest = own;
#pragma unroll
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const float other = __shfl_sync(kAllLanes, largest, (lane_id() - distance) & (kWarp - 1));
        if (lane_id() >= distance && other > largest) largest = other;
      }
      largest = m > largest ? m : largest;
      float earlier = __shfl_sync(kAllLanes, largest, (lane_id() - 1) & (kWarp - 1));
      if (lane_id() == 0) earlier = m;
      const Merge merge(earlier, own);
      const std::int32_t count = spans - begin < kWarp ? spans - begin : kWarp;
#pragma unroll 4
      for (std::int32_t i = 0; i < count; ++i) {
        const float before = __shfl_sync(kAllLanes, merge.before, i);
        const float here = __shfl_sync(kAllLanes, merge.here, i);
        l = fmaf(__shfl_sync(kAllLanes, sum, i), here, l * before);
#pragma unroll
        for (int v = 0; v < kValues; ++v) {
          const std::int32_t column = first + v * kWarp + lane_id();
          if (column < a.layer.value_dim) o[v] = fmaf(__ldcg(from + i * stride + 2 + column), here, o[v] * before);
        }
      }
      m = __shfl_sync(kAllLanes, largest, kWarp - 1);
    }
    const Finish finish(a, head, m, l, unit);
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const std::int32_t column = first + v * kWarp + lane_id();
      if (column >= a.layer.value_dim) continue;
      const float result = finish(o[v]);
      result_of(a, row, head)[column] = result;
      if (leaves_maxima && magnitude(result) > largest_result) largest_result = magnitude(result);
    }
  }
  if constexpr (leaves_maxima) leave_largest<kWarp>(a, row, true, largest_result);
}

}  // namespace sterna::cuda
