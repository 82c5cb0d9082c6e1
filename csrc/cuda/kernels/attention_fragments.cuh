/// Numbers of the cache and of queries as mma_halves wants them.
#pragma once

#include "cuda/kernels/attention_keys.cuh"

namespace sterna::cuda {

__device__ inline std::uint32_t pack_halves(std::uint16_t first, std::uint16_t second) {
  return static_cast<std::uint32_t>(first) | static_cast<std::uint32_t>(second) << 16;
}

/// Four words of matrix a of mma_halves, as the sum of two binary16 numbers each.
struct SplitFragment {
  std::uint32_t high[4], low[4];

  __device__ void set(int word, float first, float second) {
    const std::uint16_t a = float_to_half(first);
    const std::uint16_t b = float_to_half(second);
    high[word] = pack_halves(a, b);
    low[word] = pack_halves(float_to_half(first - half_to_float(a)), float_to_half(second - half_to_float(b)));
  }
};

__device__ inline void mma_split(float (&c)[4], const SplitFragment& a, const std::uint32_t (&b)[2]) {
  mma_halves(c, a.high, b);
  mma_halves(c, a.low, b);
}

/// Codes 2i and 2i + 1 of four as binary16 numbers: a code plus 128 under the exponent of 1024 is 1024 + 128 + code.
__device__ inline std::uint32_t code_pair(std::uint32_t codes, int i) {
  const std::uint32_t numbers = __byte_perm(codes ^ 0x80808080u, 0x64646464u, i == 0 ? 0x4140u : 0x4342u);
  return sub_halves(numbers, 0x64806480u);
}

/// Of a slot, for one of the two groups of a q8_0 chunk.
__device__ inline float chunk_scale(const std::uint8_t* chunk, int slot, int group) {
  const auto* scales = reinterpret_cast<const std::uint16_t*>(chunk + kChunkBytes<KvType::kQ8_0>);
  return half_to_float(scales[2 * slot + group]);
}

/// Neighbouring elements of a slot's values, at most four.
struct Elements {
  std::uint32_t words[2];
};
template <KvType type, int count>
__device__ inline Elements elements(const std::uint8_t* chunk, int slot, int column) {
  const std::uint8_t* from = chunk + chunk_place<type>(slot, column * kElementBytes<type>);
  constexpr int kBytes = count * kElementBytes<type>;
  if constexpr (kBytes == 8) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    return {{words.x, words.y}};
  } else if constexpr (kBytes == 4) {
    return {{*reinterpret_cast<const std::uint32_t*>(from), 0}};
  } else {
    return {{*reinterpret_cast<const std::uint16_t*>(from), 0}};
  }
}
/// Element i of both, as binary16 numbers.
template <KvType type>
__device__ inline std::uint32_t pair(const Elements& first, const Elements& second, int i) {
  if constexpr (type == KvType::kF16) {
    return __byte_perm(first.words[i / 2], second.words[i / 2], i % 2 == 0 ? 0x5410u : 0x7632u);
  } else {
    return code_pair(__byte_perm(first.words[0], second.words[0], i < 2 ? 0x5140u : 0x7362u), i % 2);
  }
}

/// Whether some columns of a chunk have binary16 numbers that are not finite; the same for all lanes.
__device__ inline bool has_infinite(const std::uint8_t* chunk, int first_column, int columns) {
  bool found = false;
#pragma unroll 1
  for (int slot = lane_id(); slot < kPageSlots; slot += kWarp) {
#pragma unroll 1
    for (int column = first_column; column < first_column + columns; column += 8) {
      const uint4 words = *reinterpret_cast<const uint4*>(chunk + chunk_place<KvType::kF16>(slot, column * 2));
      const std::uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        found = found || (all[i] & 0x7C00u) == 0x7C00u || (all[i] & 0x7C000000u) == 0x7C000000u;
      }
    }
  }
  return __any_sync(kAllLanes, found);
}

}  // namespace sterna::cuda
