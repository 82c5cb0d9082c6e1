/// Writes keys and values to the cache and transforms queries: a warp for each head of a row. Few bytes, so that the
/// start of the kernel sets its time.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/heads.cuh"
#include "cuda/kernels/launchers.h"
#include "engine/batch.h"

namespace sterna::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarp;

/// The code of x in a q8_0 group: to the nearest, ties away from zero.
__device__ inline std::int8_t round_away(float x) {
  const float magnitude = fabsf(x);
  const std::int32_t even = round_to_int(magnitude);
  const std::int32_t code = magnitude - static_cast<float>(even) == 0.5f ? even + 1 : even;
  return static_cast<std::int8_t>(x < 0.0f ? -code : code);
}

/// A row of n elements as q8_0 groups, as cpu/kernels/kv_rounding.h has it.
__device__ void store_q8_0(const float* x, std::int32_t n, std::int8_t* codes, std::uint16_t* scales) {
  static_assert(kKvGroup == kWarp);
  constexpr std::uint16_t kInfinity = 0x7C00, kNan = 0x7E00;
  for (std::int32_t begin = 0; begin < n; begin += kKvGroup) {
    const std::int32_t at = begin + lane_id();
    const float value = at < n ? x[at] : 0.0f;
    // Over bit patterns, so that a NaN wins.
    std::uint32_t largest = float_to_bits(value) & 0x7FFFFFFFu;
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      const std::uint32_t other = __shfl_xor_sync(kAllLanes, largest, distance);
      if (other > largest) largest = other;
    }
    const float d = bits_to_float(largest) / 127.0f;
    const std::uint16_t half = d == d ? float_to_half(d) : kNan;
    const bool is_finite = half < kInfinity;
    if (lane_id() == 0) scales[begin / kKvGroup] = is_finite ? half : kNan;
    if (at < n) codes[at] = half == 0 || !is_finite ? std::int8_t{0} : round_away(value * (1.0f / d));
  }
}

/// A row of n elements to a slot of a tile of `stride` elements a slot.
__device__ void store_slot(KvType type, std::uint8_t* tile, std::int64_t slot, std::int32_t stride, std::int32_t n,
                           const float* x) {
  switch (type) {
    case KvType::kF32: {
      float* to = reinterpret_cast<float*>(tile) + slot * stride;
      for (std::int32_t i = lane_id(); i < n; i += kWarp) to[i] = x[i];
      break;
    }
    case KvType::kF16: {
      std::uint16_t* to = reinterpret_cast<std::uint16_t*>(tile) + slot * stride;
      for (std::int32_t i = lane_id(); i < n; i += kWarp) to[i] = float_to_half(x[i]);
      break;
    }
    case KvType::kQ8_0: {
      const std::int32_t groups = (n + kKvGroup - 1) / kKvGroup;
      store_q8_0(x, n, reinterpret_cast<std::int8_t*>(tile) + slot * stride,
                 reinterpret_cast<std::uint16_t*>(tile + std::int64_t{kPageSlots} * stride) + slot * groups);
      break;
    }
  }
}

/// Warps of a row: those of the query heads that are transformed, of the keys' heads, of the values' heads.
__host__ __device__ inline std::int32_t heads_of_row(const StoreKvArguments& a) {
  return (a.q_out.data != nullptr ? a.query_heads : 0) + a.layer.num_heads * (a.layer.latent ? 1 : 2);
}

__global__ void __launch_bounds__(kThreads) store_kv(StoreKvArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const std::int32_t heads = heads_of_row(a);
  const std::int64_t item = std::int64_t{blockIdx.x} * kWarps + warp_id();
  const auto row = static_cast<std::int32_t>(item / heads);
  if (row >= num_tokens(batch)) return;
  const KvLayer& layer = a.layer;
  auto head = static_cast<std::int32_t>(item % heads);
  if (a.q_out.data != nullptr) {
    if (head < a.query_heads) {
      const std::int64_t at = std::int64_t{head} * layer.head_dim;
      float* y = row_of(a.q_out, row) + at;
      transform_head(a.query_transform, row, layer.head_dim, row_of(a.q, row) + at,
                     [y](std::int32_t i, float value) { y[i] = value; });
      return;
    }
    head -= a.query_heads;
  }
  const std::int32_t position = batch.positions[row];
  const std::int32_t page = page_of(batch, batch.sequences[row], layer.pool, position / kPageSlots);
  if (page < 0) return;
  std::uint8_t* tiles = layer.pages[page] + layer.offset;
  const std::int64_t slot = position % kPageSlots;
  if (head < layer.num_heads) {
    float* key = reinterpret_cast<float*>(dynamic_shared()) + warp_id() * layer.head_dim;
    transform_head(a.key_transform, row, layer.head_dim, row_of(a.k, row) + std::int64_t{head} * layer.head_dim,
                   [key](std::int32_t i, float value) { key[i] = value; });
    __syncwarp();
    store_slot(layer.type, tiles + head * layer.head_bytes, slot, layer.head_dim, layer.head_dim, key);
  } else {
    head -= layer.num_heads;
    store_slot(layer.type, tiles + head * layer.head_bytes + layer.value_offset, slot, layer.value_stride,
               layer.value_dim, row_of(a.v, row) + std::int64_t{head} * layer.value_dim);
  }
}

}  // namespace

Status launch_store_kv(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const StoreKvArguments*>(arguments);
  const std::int64_t items = std::int64_t{launch.num_tokens} * heads_of_row(a);
  const auto shared = static_cast<std::size_t>(kWarps * a.layer.head_dim) * sizeof(float);
  return cuda::launch(store_kv, static_cast<unsigned>((items + kWarps - 1) / kWarps), kThreads, shared, launch.stream,
                      a, *launch.batch);
}

}  // namespace sterna::cuda
