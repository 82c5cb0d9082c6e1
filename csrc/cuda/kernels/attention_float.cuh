/// Attention over a cache of floats, by fused multiply-adds: a warp has four queries. Per product a lane loads few
/// numbers from shared memory, so that these loads, not arithmetic, set the pace; such caches serve comparisons.
#pragma once

#include "cuda/kernels/attention_queries.cuh"

namespace sterna::cuda {

/// For values of up to 32 * value_chunks elements.
template <int value_chunks, int stages>
class FloatAttention {
 public:
  static constexpr KvType kType = KvType::kF32;
  static constexpr bool kIsForFew = true;  // leaves maxima
  static constexpr int kStages = stages;
  static constexpr int kQueries = 16;
  static constexpr int kValueChunks = value_chunks;
  static constexpr int kSums = (value_chunks + 2) * (kQueries / kAttentionWarps);  // of a lane: o, m, l
  static constexpr float kUnit = 1.0f;

  static constexpr std::size_t shared_bytes(std::int32_t head_dim) {
    return static_cast<std::size_t>(kQueries) * (padded(head_dim) + kPageSlots) * sizeof(float);
  }

  __device__ FloatAttention(const AttendArguments& a, const DeviceBatch& batch, const QueryBlock& block,
                            std::uint8_t* shared)
      : a_(a),
        block_(block),
        queries_(reinterpret_cast<float*>(shared) + warp_id() * kOwn * padded(a.layer.head_dim)),
        p_(reinterpret_cast<float*>(shared) + kQueries * padded(a.layer.head_dim) + warp_id() * kOwn * kPageSlots) {
    const std::int32_t dim = a.layer.head_dim;
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      const int query = warp_id() * kOwn + q;
      terms_[q] = terms_of(a, batch, block, query);
      const float* from = row_of(a.q, block.row(query)) + std::int64_t{block.head(query)} * dim;
      for (std::int32_t i = lane_id(); i < padded(dim); i += kWarp) {
        queries_[q * padded(dim) + i] = i < dim ? from[i] : 0.0f;
      }
    }
    __syncwarp();
  }

  __device__ static void begin(volatile float* merged) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) merged[i] = i < kSums - 2 * kOwn || i >= kSums - kOwn ? 0.0f : -INFINITY;
  }

  __device__ void begin_span() {
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      m_[q] = -INFINITY;
      l_[q] = 0.0f;
#pragma unroll
      for (int v = 0; v < kValueChunks; ++v) o_[v][q] = 0.0f;
    }
  }

  __device__ void begin_tile() {
#pragma unroll
    for (int q = 0; q < kOwn; ++q) products_[q][0] = products_[q][1] = 0.0f;
  }

  /// Lane i has keys i and i + 32.
  __device__ void add_products(const std::uint8_t* chunk, int number) {
    const int stride = padded(a_.layer.head_dim);
#pragma unroll 2
    for (int piece = 0; piece < kColumns / 4; ++piece) {
      float4 key[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        key[i] = *reinterpret_cast<const float4*>(chunk + chunk_place<kType>(lane_id() + kWarp * i, piece * 16));
      }
#pragma unroll
      for (int q = 0; q < kOwn; ++q) {
        const float4 x = *reinterpret_cast<const float4*>(queries_ + q * stride + number * kColumns + piece * 4);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sum = products_[q][i];
          sum = fmaf(x.x, key[i].x, sum);
          sum = fmaf(x.y, key[i].y, sum);
          sum = fmaf(x.z, key[i].z, sum);
          products_[q][i] = fmaf(x.w, key[i].w, sum);
        }
      }
    }
  }

  __device__ void weigh(std::int32_t first_key) {
    __syncwarp();  // the tile before has been read
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      float s[2], largest = -INFINITY;
      bool is_seen[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int32_t key = first_key + lane_id() + kWarp * i;
        is_seen[i] = terms_[q].sees(key);
        s[i] = score(a_, terms_[q], products_[q][i], key);
        if (is_seen[i] && s[i] > largest) largest = s[i];
      }
#pragma unroll
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const float other = __shfl_xor_sync(kAllLanes, largest, distance);
        if (other > largest) largest = other;
      }
      const float next = m_[q] > largest ? m_[q] : largest;
      const float factor = terms_[q].sees_any_of(first_key) ? exponential(m_[q] - next) : 1.0f;
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float p = is_seen[i] ? exponential(s[i] - next) : 0.0f;
        p_[q * kPageSlots + lane_id() + kWarp * i] = p;
        sum = sum + p;
      }
      l_[q] = l_[q] * factor + sum;  // of this lane's keys
      m_[q] = next;
#pragma unroll
      for (int v = 0; v < kValueChunks; ++v) o_[v][q] = o_[v][q] * factor;
    }
    __syncwarp();
  }

  /// Lane i has element i of each chunk.
  __device__ void add_values(const std::uint8_t* chunk, int number, std::int32_t) {
    float* o = o_[number];
#pragma unroll 2
    for (int key = 0; key < kPageSlots; key += 4) {
      float v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = *reinterpret_cast<const float*>(chunk + chunk_place<kType>(key + i, lane_id() * 4));
      }
#pragma unroll
      for (int q = 0; q < kOwn; ++q) {
        const float4 p = *reinterpret_cast<const float4*>(p_ + q * kPageSlots + key);
        // 0 is that of keys that are not seen: exponential is never 0.
        if (p.x != 0.0f) o[q] = fmaf(p.x, v[0], o[q]);
        if (p.y != 0.0f) o[q] = fmaf(p.y, v[1], o[q]);
        if (p.z != 0.0f) o[q] = fmaf(p.z, v[2], o[q]);
        if (p.w != 0.0f) o[q] = fmaf(p.w, v[3], o[q]);
      }
    }
  }

  /// The span is complete. Its sums go to partial, or to those of the spans before, whose sums are `merged`.
  __device__ void end_span(std::int32_t span, bool to_partial, volatile float* merged) {
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      const int query = warp_id() * kOwn + q;
      const float l = warp_sum(l_[q]);
      if (!terms_[q].sees_span(span)) continue;
      if (to_partial) {
        if (query >= block_.count()) continue;
        float* to = partial_of(a_, block_.row(query), block_.head(query), span - terms_[q].keys.first_span());
        if (lane_id() == 0) {
          to[0] = m_[q];
          to[1] = l;
        }
        write(to + 2, [&](int v) { return o_[v][q]; });
        continue;
      }
      volatile float& m = merged[kSums - 2 * kOwn + q];
      volatile float& sum = merged[kSums - kOwn + q];
      const Merge merge(m, m_[q]);
      m = merge.m;
      sum = merge(sum, l);
#pragma unroll
      for (int v = 0; v < kValueChunks; ++v) {
        volatile float& o = merged[v * kOwn + q];
        o = merge(o, o_[v][q]);
      }
    }
  }

  __device__ void finish(const volatile float* merged) {
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      const int query = warp_id() * kOwn + q;
      if (query >= block_.count()) continue;
      const Finish finish(a_, block_.head(query), merged[kSums - 2 * kOwn + q], merged[kSums - kOwn + q], kUnit);
      std::uint32_t largest = 0;
      write(result_of(a_, block_.row(query), block_.head(query)), [&](int v) {
        const float result = finish(merged[v * kOwn + q]);
        if (magnitude(result) > largest) largest = magnitude(result);
        return result;
      });
      leave_largest<kWarp>(a_, block_.row(query), true, largest);
    }
  }

 private:
  static constexpr int kColumns = kChunkColumns<kType>;
  static constexpr int kOwn = kQueries / kAttentionWarps;

  __host__ __device__ static constexpr int padded(int dim) { return (dim + kColumns - 1) / kColumns * kColumns; }

  template <class Function>
  __device__ void write(float* to, Function number) const {
#pragma unroll
    for (int v = 0; v < kValueChunks; ++v) {
      const std::int32_t column = v * kColumns + lane_id();
      if (column < a_.layer.value_dim) to[column] = number(v);
    }
  }

  const AttendArguments& a_;
  const QueryBlock& block_;
  float* queries_;  // [kOwn][padded head_dim]
  float* p_;        // [kOwn][64]
  QueryTerms terms_[kOwn];
  float products_[kOwn][2];
  float m_[kOwn], l_[kOwn];
  float o_[kValueChunks][kOwn];
};

}  // namespace sterna::cuda
