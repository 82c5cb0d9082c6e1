/// What all kernels share: who does which rows, sums in a fixed order, and elementary functions.
///
/// Every kernel waits for the one before it (wait_for_previous) before it reads or writes what a kernel writes, and all
/// lanes of a warp take part in what warps do together. Sums are taken in an order that depends on sizes alone: no
/// result depends on the number of rows, the grid or the time.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device_table.h"
#include "cuda/kernels/intrinsics.cuh"

namespace sterna::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

__device__ inline std::int32_t num_tokens(const DeviceBatch& batch) { return batch.counts[0]; }
__device__ inline std::int32_t num_outputs(const DeviceBatch& batch) { return batch.counts[1]; }
__device__ inline std::int32_t num_sequences(const DeviceBatch& batch) { return batch.counts[2]; }
__device__ inline std::int32_t num_rows(const DeviceBatch& batch, bool outputs) {
  return batch.counts[outputs ? 1 : 0];
}
inline std::int32_t max_rows(const Launch& launch, bool outputs) {
  return outputs ? launch.num_outputs : launch.num_tokens;
}

__device__ inline float* row_of(const Rows& rows, std::int64_t i) { return rows.data + i * rows.stride; }

/// The token row that row `i` of rows stands for.
__device__ inline std::int32_t token_row(const DeviceBatch& batch, bool outputs, std::int32_t i) {
  return outputs ? batch.output_rows[i] : i;
}

/// The page that holds a position of a sequence; kNoPage where there is none.
__device__ inline std::int32_t page_of(const DeviceBatch& batch, std::int32_t sequence, std::int32_t pool,
                                       std::int64_t index) {
  return batch.pages[batch.tables[sequence * batch.num_pools + pool] + index];
}

/// Over the lanes of a warp: halves are added, then their halves. All lanes get it.
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = x + __shfl_xor_sync(kAllLanes, x, distance);
  return x;
}
/// A NaN wins, whichever it is.
__device__ inline float larger(float a, float b) { return a != a || b != b ? a + b : (a > b ? a : b); }
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, distance));
  return x;
}

/// Over a block of `threads` threads: that of each warp, then warp by warp. All threads get it; all must come here.
template <int threads>
__device__ float block_sum(float x) {
  __shared__ float sums[threads / kWarp];
  x = warp_sum(x);
  __syncthreads();  // of the call before, everybody has read
  if (lane_id() == 0) sums[warp_id()] = x;
  __syncthreads();
  float total = sums[0];
  for (int w = 1; w < threads / kWarp; ++w) total = total + sums[w];
  return total;
}
template <int threads>
__device__ float block_max(float x) {
  __shared__ float largest[threads / kWarp];
  x = warp_max(x);
  __syncthreads();
  if (lane_id() == 0) largest[warp_id()] = x;
  __syncthreads();
  float all = largest[0];
  for (int w = 1; w < threads / kWarp; ++w) all = larger(all, largest[w]);
  return all;
}

__device__ inline float bits_to_float(std::uint32_t bits) { return __uint_as_float(bits); }
__device__ inline std::uint32_t float_to_bits(float x) { return __float_as_uint(x); }

__device__ inline std::uint16_t float_to_bfloat(float x) {
  const std::uint32_t bits = float_to_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);  // NaN
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}
__device__ inline float bfloat_to_float(std::uint16_t b) { return bits_to_float(static_cast<std::uint32_t>(b) << 16); }

/// As cpu/kernels/math.h has it, so that CPU and GPU differ by the order of sums only.
__device__ inline float exponential(float x) {
  x = x < -87.3f ? -87.3f : x;
  x = x > 88.0f ? 88.0f : x;
  if (x != x) return x;
  const std::int32_t n = round_to_int(x * 1.44269504f);
  const float nf = static_cast<float>(n);
  float r = fmaf(nf, -0.693359375f, x);
  r = fmaf(nf, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r + 1.0f);
  return p * bits_to_float(static_cast<std::uint32_t>(n + 127) << 23);
}
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
__device__ inline float tangent(float x) {  // hyperbolic
  const float size = fabsf(x);
  if (size < 0.625f) {
    const float z = x * x;
    float p = -5.70498872745e-3f;
    p = fmaf(p, z, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    return fmaf(p * z, x, x);
  }
  const float far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
  return x < 0.0f ? -far : far;
}

}  // namespace sterna::cuda
