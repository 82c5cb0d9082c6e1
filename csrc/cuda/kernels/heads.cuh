/// What happens to one head of queries or keys before attention: its norm and its rotation, by one warp.
#pragma once

#include "cuda/kernels/device.cuh"

namespace sterna::cuda {

/// 1 / sqrt(mean(x^2) + eps) of n floats, with the CPU's bits: squares are summed by fma into 16 lanes, then lanes i
/// and i + 8, i + 4, i + 2, i + 1. Both halves of the warp do the same.
__device__ inline float inverse_rms(const float* x, std::int32_t n, float eps) {
  constexpr int kLanes = 16;
  float squares = 0.0f;
  for (std::int32_t i = lane_id() % kLanes; i < n; i += kLanes) squares = fmaf(x[i], x[i], squares);
#pragma unroll
  for (int distance = kLanes / 2; distance > 0; distance /= 2) {
    squares = squares + __shfl_xor_sync(kAllLanes, squares, distance);
  }
  return 1.0f / sqrtf(squares / static_cast<float>(n) + eps);
}

/// Calls store(i, y[i]) once for each i below head_dim, where y = transform(x) for one head of row `row`; whichever
/// lane has a value calls. All lanes of the warp take part. `store` may write to x[i]: what a lane reads afterwards is
/// what it writes. Lanes that then read what others stored need __syncwarp() first.
///
/// Rotation: (a, b) -> (a cos - b sin, b cos + a sin), each as one product and one fma, of pairs that lie side by side
/// or rotary_dim / 2 apart.
template <class Store>
__device__ inline void transform_head(const HeadTransform& transform, std::int64_t row, std::int32_t head_dim,
                                      const float* x, Store store) {
  const float* norm = transform.norm;
  const float inverse = norm != nullptr ? inverse_rms(x, head_dim, transform.eps) : 0.0f;
  const auto normed = [&](std::int32_t i) { return norm != nullptr ? x[i] * inverse * norm[i] : x[i]; };
  std::int32_t first = 0;  // of those that are not rotated
  if (transform.cosines.data != nullptr) {
    const float* cosines = row_of(transform.cosines, row);
    const float* sines = row_of(transform.sines, row);
    const std::int32_t half = transform.rotary_dim / 2;
    for (std::int32_t i = lane_id(); i < half; i += kWarp) {
      const std::int32_t at = transform.interleaved ? 2 * i : i;
      const std::int32_t other = transform.interleaved ? 2 * i + 1 : half + i;
      const float a = normed(at);
      const float b = normed(other);
      const float product = b * sines[i];
      // The CPU's two ways to negate differ in the sign of zero.
      store(at, fmaf(a, cosines[i], transform.interleaved ? -product : 0.0f - product));
      store(other, fmaf(b, cosines[i], a * sines[i]));
    }
    first = 2 * half;
  }
  for (std::int32_t i = first + lane_id(); i < head_dim; i += kWarp) store(i, normed(i));
}

}  // namespace sterna::cuda
