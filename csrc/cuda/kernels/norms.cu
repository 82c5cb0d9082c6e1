/// Norms of rows: a block for each row.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 256;

/// y = (x * 1/sqrt(mean(x^2) + eps)) * weight (+ residual); squares are summed by fma, each thread its own, then over
/// the block.
__global__ void rms_norm(NormArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  if (row >= num_rows(batch, a.x.outputs)) return;
  for (std::int64_t head = 0; head < a.heads; ++head) {
    const float* x = row_of(a.x, row) + head * a.n;
    float* y = row_of(a.y, row) + head * a.n;
    float squares = 0.0f;
    for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) squares = fmaf(x[i], x[i], squares);
    const float mean = block_sum<kThreads>(squares) / static_cast<float>(a.n);
    const float inverse = 1.0f / sqrtf(mean + a.eps);
    for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) {
      float value = x[i] * inverse;
      if (a.weight != nullptr) value = value * a.weight[i];
      if (a.residual.data != nullptr) value = value + row_of(a.residual, row)[head * a.n + i];
      y[i] = value;
    }
  }
}

/// y = (x - mean) * 1/sqrt(mean((x - mean)^2) + eps), then * weight and, by fma, + bias.
__global__ void layer_norm(LayerNormArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  if (row >= num_rows(batch, a.x.outputs)) return;
  for (std::int64_t head = 0; head < a.heads; ++head) {
    const float* x = row_of(a.x, row) + head * a.n;
    float* y = row_of(a.y, row) + head * a.n;
    float total = 0.0f;
    for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) total = total + x[i];
    const float mean = block_sum<kThreads>(total) / static_cast<float>(a.n);
    float squares = 0.0f;
    for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) {
      const float difference = x[i] - mean;
      squares = fmaf(difference, difference, squares);
    }
    const float inverse = 1.0f / sqrtf(block_sum<kThreads>(squares) / static_cast<float>(a.n) + a.eps);
    for (std::int64_t i = threadIdx.x; i < a.n; i += kThreads) {
      const std::int64_t at = head * a.head_step + i;
      float value = (x[i] - mean) * inverse;
      if (a.bias != nullptr) {
        value = fmaf(value, a.weight[at], a.bias[at]);
      } else if (a.weight != nullptr) {
        value = value * a.weight[at];
      }
      y[i] = value;
    }
  }
}

}  // namespace

Status launch_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const NormArguments*>(arguments);
  return cuda::launch(rms_norm, max_rows(launch, a.x.outputs), kThreads, 0, launch.stream, a, *launch.batch);
}

Status launch_layer_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const LayerNormArguments*>(arguments);
  return cuda::launch(layer_norm, max_rows(launch, a.x.outputs), kThreads, 0, launch.stream, a, *launch.batch);
}

}  // namespace sterna::cuda
