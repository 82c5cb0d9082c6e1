/// Attention over a cache of binary16 or q8_0 numbers with tensor cores. Queries and weights are sums of two binary16
/// numbers, so that products are exact but for 2^-22; sums are float.
///
/// Queries meet as many binary16 numbers as are cached: 16 of them go through a tile of 64 keys together. Their
/// products with keys, c of mma_halves, lie as its a wants them, so that each lane turns its own into weights.
/// `key_warps` warps share the keys of a tile, and the columns of its values; where there are several, weights pass
/// through shared memory. Sums over head_dim and over keys have one order, whatever the number of warps.
#pragma once

#include "cuda/kernels/attention_fragments.cuh"
#include "cuda/kernels/attention_queries.cuh"

namespace sterna::cuda {

/// For values of up to 64 * value_chunks elements.
template <KvType type, int key_warps, int value_chunks, int stages>
class MmaAttention {
 public:
  static constexpr KvType kType = type;
  static constexpr int kStages = stages;
  static constexpr bool kIsForFew = key_warps == 4;  // only these leave maxima
  static constexpr int kQueryWarps = kAttentionWarps / key_warps;
  static constexpr int kQueries = 16 * kQueryWarps;
  static constexpr int kValueChunks = value_chunks;
  static constexpr int kSums = value_chunks * (8 / key_warps) * 4 + 4;  // of a lane: o, m, l
  /// p * unit, in a q8_0 cache times a value's scale, is split into binary16 numbers: as large as fits, for scales up
  /// to 4,094, so that small weights and scales keep their bits.
  static constexpr float kUnit = type == KvType::kF16 ? 16384.0f : 16.0f;

  static constexpr std::size_t shared_bytes(std::int32_t head_dim) {
    return static_cast<std::size_t>(kQueries) * padded(head_dim) * 4 + kWeightBytes + kSumBytes;
  }

  __device__ MmaAttention(const AttendArguments& a, const DeviceBatch& batch, const QueryBlock& block,
                          std::uint8_t* shared)
      : a_(a), batch_(batch), block_(block), shared_(shared) {
#pragma unroll
    for (int r = 0; r < 2; ++r) terms_[r] = terms_of(a, batch, block, own_query(r));
    for (int query = warp_id(); query < kQueries; query += kAttentionWarps) {
      const float power = store_query(row_of(a.q, block.row(query)) + std::int64_t{block.head(query)} * dim(), query);
      if (lane_id() == 0) sums()[query] = power;
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) terms_[r].factor = terms_[r].factor * sums()[own_query(r)];
  }

  __device__ static void begin(volatile float* merged) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) merged[i] = i < kSums - 4 || i >= kSums - 2 ? 0.0f : -INFINITY;
  }

  __device__ void begin_span() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      m_[r] = -INFINITY;
#pragma unroll
      for (int k = 0; k < kGroups; ++k) l_[r][k] = 0.0f;
    }
#pragma unroll
    for (int v = 0; v < value_chunks; ++v) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) o_[v][i][e] = 0.0f;
      }
    }
  }

  __device__ void begin_tile() {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s_[j][e] = 0.0f;
    }
  }

  /// Lane (g, t) meets elements 8t .. 8t + 7 of each 32 elements, of two rows of queries and of key g of each 8: a sum
  /// over all elements may take them in any order, if it is one.
  __device__ void add_products(const std::uint8_t* chunk, int number) {
    const int g = lane_id() / 4;
    const int t = lane_id() % 4;
#pragma unroll 1
    for (int part = 0; part < 2; ++part) {
      const int group = 2 * number + part;
      if (group * 32 >= dim()) break;
      uint4 high[2], low[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int place = query_place(own_query(r), group * 4 + t);
        high[r] = *reinterpret_cast<const uint4*>(highs() + place);
        low[r] = *reinterpret_cast<const uint4*>(lows() + place);
      }
      const SplitFragment a[2] = {
          {{high[0].x, high[1].x, high[0].y, high[1].y}, {low[0].x, low[1].x, low[0].y, low[1].y}},
          {{high[0].z, high[1].z, high[0].w, high[1].w}, {low[0].z, low[1].z, low[0].w, low[1].w}}};
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const int key = first_key() + 8 * j;
        if constexpr (type == KvType::kF16) {
          const uint4 k = *reinterpret_cast<const uint4*>(chunk + chunk_place<type>(key + g, 64 * part + 16 * t));
          mma_split(s_[j], a[0], {k.x, k.y});
          mma_split(s_[j], a[1], {k.z, k.w});
        } else {
          const uint2 k = *reinterpret_cast<const uint2*>(chunk + chunk_place<type>(key + g, 32 * part + 8 * t));
          float sum[4] = {};
          mma_split(sum, a[0], {code_pair(k.x, 0), code_pair(k.x, 1)});
          mma_split(sum, a[1], {code_pair(k.y, 0), code_pair(k.y, 1)});
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float scale = chunk_scale(chunk, key + 2 * t + i, part);
            s_[j][i] = fmaf(scale, sum[i], s_[j][i]);
            s_[j][i + 2] = fmaf(scale, sum[i + 2], s_[j][i + 2]);
          }
        }
      }
    }
  }

  __device__ void weigh(std::int32_t tile_key) {
    const std::int32_t first = tile_key + first_key() + 2 * (lane_id() % 4);
    is_full_ = !__any_sync(kAllLanes, !terms_[0].sees_all_of(tile_key) || !terms_[1].sees_all_of(tile_key));
    sees_any_ = __any_sync(kAllLanes, terms_[0].sees_any_of(tile_key) || terms_[1].sees_any_of(tile_key));
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = e / 2;
        const std::int32_t key = first + 8 * j + e % 2;
        s_[j][e] = score(a_, terms_[r], s_[j][e], key);
        if (terms_[r].sees(key) && s_[j][e] > largest[r]) largest[r] = s_[j][e];
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        const float other = __shfl_xor_sync(kAllLanes, largest[r], distance);
        if (other > largest[r]) largest[r] = other;
      }
    }
    if constexpr (key_warps > 1) {
      if (lane_id() % 4 == 0) {
        sums()[own_query(0) * 4 + key_warp()] = largest[0];
        sums()[own_query(1) * 4 + key_warp()] = largest[1];
      }
      __syncthreads();
#pragma unroll
      for (int w = 0; w < key_warps; ++w) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float other = sums()[own_query(r) * 4 + w];
          if (other > largest[r]) largest[r] = other;
        }
      }
    }
    float factors[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float next = m_[r] > largest[r] ? m_[r] : largest[r];
      factors[r] = terms_[r].sees_any_of(tile_key) ? exponential(m_[r] - next) : 1.0f;
      m_[r] = next;
#pragma unroll
      for (int k = 0; k < kGroups; ++k) l_[r][k] = l_[r][k] * factors[r];
    }
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int r = e / 2;
        const float p = terms_[r].sees(first + 8 * j + e % 2) ? exponential(s_[j][e] - m_[r]) * kUnit : 0.0f;
        s_[j][e] = p;
        l_[r][j / 2] = l_[r][j / 2] + p;
      }
    }
    if (__any_sync(kAllLanes, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
      for (int v = 0; v < value_chunks; ++v) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) o_[v][i][e] = o_[v][i][e] * factors[e / 2];
        }
      }
    }
    if constexpr (key_warps > 1) {
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        uint4* to = shared_weights() + (key_warp() * kGroups + k) * 2 * kWarp + lane_id();
        const Weights weights = own_weights(k);
        to[0] = {weights.words[0], weights.words[1], weights.words[2], weights.words[3]};
        to[kWarp] = {weights.words[4], weights.words[5], weights.words[6], weights.words[7]};
      }
    }
  }

  /// Others read the weights of this warp after the next __syncthreads, which comes before the chunk does.
  __device__ void add_values(const std::uint8_t* chunk, int number, std::int32_t tile_key) {
    if (!sees_any_) return;
    if constexpr (type == KvType::kF16) {
      if (!is_full_ && has_infinite(chunk, key_warp() * 8 * kTiles, 8 * kTiles)) {
        // 0 times such a value is no zero: rows go one by one, and the values that they do not see become zeros.
#pragma unroll 1
        for (int row = block_.row(first_query()); row <= block_.row(first_query() + 15); ++row) {
          const KeyRange keys = seen_keys(a_, batch_, row);
          add<true>(chunk, number, row, {keys.first - tile_key, keys.last - tile_key});
        }
        return;
      }
    }
    add<false>(chunk, number, 0, {});
  }

  /// The span is complete. Its sums go to partial, or to those of the spans before, whose sums are `merged`.
  __device__ void end_span(std::int32_t span, bool to_partial, volatile float* merged) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int k = 0; k < kGroups; ++k) {
        float l = l_[r][k];
        l = l + __shfl_xor_sync(kAllLanes, l, 1);
        l = l + __shfl_xor_sync(kAllLanes, l, 2);
        if (lane_id() % 4 == 0) sums()[(own_query(r)) * 4 + key_warp() * kGroups + k] = l;
      }
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = own_query(r);
      const float* parts = sums() + query * 4;
      const float l = parts[0] + parts[1] + parts[2] + parts[3];
      if (!terms_[r].sees_span(span)) continue;
      if (to_partial) {
        if (query >= block_.count()) continue;
        float* to = partial_of(a_, block_.row(query), block_.head(query), span - terms_[r].keys.first_span());
        if (key_warp() == 0 && lane_id() % 4 == 0) {
          to[0] = m_[r];
          to[1] = l;
        }
        write(to + 2, r, [&](int v, int i, int e) { return o_[v][i][e]; });
        continue;
      }
      volatile float& m = merged[kSums - 4 + r];
      volatile float& sum = merged[kSums - 2 + r];
      const Merge merge(m, m_[r]);
      m = merge.m;
      sum = merge(sum, l);
#pragma unroll
      for (int v = 0; v < value_chunks; ++v) {
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int e = 2 * r; e < 2 * r + 2; ++e) {
            volatile float& o = merged[(v * kTiles + i) * 4 + e];
            o = merge(o, o_[v][i][e]);
          }
        }
      }
    }
  }

  __device__ void finish(const volatile float* merged) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = own_query(r);
      const bool is_query = query < block_.count();
      std::uint32_t largest = 0;
      if (is_query) {
        const Finish finish(a_, block_.head(query), merged[kSums - 4 + r], merged[kSums - 2 + r], kUnit);
        write(result_of(a_, block_.row(query), block_.head(query)), r, [&](int v, int i, int e) {
          const float result = finish(merged[(v * kTiles + i) * 4 + e]);
          if (kIsForFew && magnitude(result) > largest) largest = magnitude(result);
          return result;
        });
      }
      if constexpr (kIsForFew) leave_largest<4>(a_, block_.row(query), is_query, largest);
    }
  }

 private:
  static constexpr int kTiles = 8 / key_warps;                  // of 8 keys, and of 8 columns of a chunk of values
  static constexpr int kGroups = 4 / key_warps;                 // of 16 keys
  static constexpr int kLaneColumns = kTiles < 4 ? kTiles : 4;  // neighbouring columns of a lane
  static constexpr int kWeightBytes = key_warps > 1 ? kQueryWarps * 256 * 16 : 0;
  static constexpr int kSumBytes = kQueries * 4 * 4;

  /// p of 16 queries and 16 keys: in words of matrix a, high and low parts; of a q8_0 cache floats, as scales of the
  /// values come first.
  struct Weights {
    std::uint32_t words[8];
  };

  /// The common power of two of a query whose numbers are between 2^14 and 2^15 times it, so that both parts are
  /// binary16 numbers; an infinite one or a NaN stays one.
  __device__ float store_query(const float* x, int query) {
    std::uint32_t largest = 0;
    for (int i = lane_id(); i < dim(); i += kWarp) {
      const std::uint32_t bits = float_to_bits(x[i]) & 0x7FFFFFFFu;
      if (bits > largest) largest = bits;
    }
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const std::uint32_t other = __shfl_xor_sync(kAllLanes, largest, distance);
      if (other > largest) largest = other;
    }
    std::uint32_t exponent = largest >> 23;
    if (exponent < 15) exponent = 15;
    const float up = bits_to_float((268 - exponent) << 23);
    for (int i = lane_id(); i < padded(dim()); i += kWarp) {
      const float value = i < dim() ? x[i] * up : 0.0f;
      const std::uint16_t high = float_to_half(value);
      const int place = query_place(query, i / 8) + i % 8 * 2;
      *reinterpret_cast<std::uint16_t*>(highs() + place) = high;
      *reinterpret_cast<std::uint16_t*>(lows() + place) = float_to_half(value - half_to_float(high));
    }
    return bits_to_float((exponent - 14) << 23);
  }

  __device__ int dim() const { return a_.layer.head_dim; }
  __host__ __device__ static constexpr int padded(int dim) { return (dim + 31) / 32 * 32; }
  /// Of a piece of 8 elements. Neighbouring queries lie in different banks.
  __device__ int query_place(int query, int piece) const {
    const int groups = padded(dim()) / 32;
    if (groups % 2 == 0) piece ^= (query & 1) * 4;
    return query * groups * 64 + piece * 16;
  }

  __device__ static int key_warp() { return warp_id() % key_warps; }
  __device__ static int first_key() { return key_warp() * 8 * kTiles; }
  /// Of this warp's 16.
  __device__ static int first_query() { return warp_id() / key_warps * 16; }
  __device__ static int own_query(int r) { return first_query() + lane_id() / 4 + 8 * r; }

  /// Of this warp's queries: [16 keys][2][lane].
  __device__ uint4* shared_weights() const { return reinterpret_cast<uint4*>(shared_) + warp_id() / key_warps * 256; }
  /// [query][4]
  __device__ float* sums() const { return reinterpret_cast<float*>(shared_ + kWeightBytes); }
  /// [query][padded head_dim], both parts
  __device__ std::uint8_t* highs() const { return shared_ + kWeightBytes + kSumBytes; }
  __device__ std::uint8_t* lows() const { return highs() + kQueries * padded(dim()) * 2; }

  __device__ Weights own_weights(int k) const {
    Weights weights;
    if constexpr (type == KvType::kF16) {
      SplitFragment split;
      split.set(0, s_[2 * k][0], s_[2 * k][1]);
      split.set(1, s_[2 * k][2], s_[2 * k][3]);
      split.set(2, s_[2 * k + 1][0], s_[2 * k + 1][1]);
      split.set(3, s_[2 * k + 1][2], s_[2 * k + 1][3]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights.words[i] = split.high[i];
        weights.words[4 + i] = split.low[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) weights.words[i] = float_to_bits(s_[2 * k + i / 4][i % 4]);
    }
    return weights;
  }
  __device__ Weights weights_of(int k) const {
    if constexpr (key_warps == 1) {
      return own_weights(k);
    } else {
      const uint4* from = shared_weights() + k * 2 * kWarp + lane_id();
      const uint4 first = from[0];
      const uint4 second = from[kWarp];
      return {{first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w}};
    }
  }

  /// As a matrix, in a q8_0 cache times the scales of a group of values.
  __device__ SplitFragment fragment(const Weights& weights, const std::uint8_t* chunk, int k, int group) const {
    SplitFragment a;
    if constexpr (type == KvType::kF16) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a.high[i] = weights.words[i];
        a.low[i] = weights.words[4 + i];
      }
    } else {
      const int key = 16 * k + 2 * (lane_id() % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scales[2] = {chunk_scale(chunk, key + 8 * half, group),
                                 chunk_scale(chunk, key + 8 * half + 1, group)};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float p[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const float weight = bits_to_float(weights.words[4 * half + 2 * r + i]);
            // A scale that is not seen may be a NaN.
            p[i] = weight == 0.0f ? 0.0f : weight * scales[i];
          }
          a.set(2 * half + r, p[0], p[1]);
        }
      }
    }
    return a;
  }

  /// The first column, in the chunk, of those that part `part` of this warp's columns begins with for n of mma_halves.
  __device__ int column_of(int part, int n) const { return key_warp() * 8 * kTiles + part * 32 + n * kLaneColumns; }

  /// o += p v; with `masked` for the queries of one row only, and of the values only those that it sees.
  template <bool masked>
  __device__ void add(const std::uint8_t* chunk, int number, int row, KeyRange seen) {
    constexpr int kParts = kTiles / kLaneColumns;
// A warp's own weights are in registers.
#pragma unroll(key_warps == 1 ? 4 : 2)
    for (int k = 0; k < 4; ++k) {
      const Weights weights = weights_of(k);
      const int slot = 16 * k + 2 * (lane_id() % 4);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        if (number * 64 + column_of(part, 0) >= a_.layer.value_dim) break;
        const int column = column_of(part, lane_id() / 4);
        const SplitFragment a = fragment(weights, chunk, k, column_of(part, 0) / 32);
        Elements rows[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = slot + i % 2 + i / 2 * 8;
          rows[i] = elements<type, kLaneColumns>(chunk, at, column);
          if (masked && (at < seen.first || at > seen.last)) rows[i] = {};
        }
#pragma unroll
        for (int i = 0; i < kLaneColumns; ++i) {
          float* o = o_[number][part * kLaneColumns + i];
          float sum[4] = {o[0], o[1], o[2], o[3]};
          mma_split(sum, a, {pair<type>(rows[0], rows[1], i), pair<type>(rows[2], rows[3], i)});
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (!masked || block_.row(own_query(e / 2)) == row) o[e] = sum[e];
          }
        }
      }
    }
  }

  template <class Function>
  __device__ void write(float* to, int r, Function number) const {
#pragma unroll
    for (int v = 0; v < value_chunks; ++v) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const std::int32_t column = v * 64 + column_of(i / kLaneColumns, 2 * (lane_id() % 4) + e) + i % kLaneColumns;
          if (column < a_.layer.value_dim) to[column] = number(v, i, 2 * r + e);
        }
      }
    }
  }

  const AttendArguments& a_;
  const DeviceBatch& batch_;
  const QueryBlock& block_;
  std::uint8_t* shared_;
  bool is_full_, sees_any_;  // whether all of this warp's queries see the whole tile; whether any sees any of it
  // Of the lane's two queries, g and g + 8 of the 16.
  QueryTerms terms_[2];
  float m_[2], l_[2][kGroups];
  float s_[kTiles][4];
  float o_[value_chunks][kTiles][4];
};

}  // namespace sterna::cuda
