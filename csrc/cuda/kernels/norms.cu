/// Norms of rows: a block for each row, or each head of one. Of few rows it is waiting that takes the time: what the
/// rows before do not decide is loaded before they are there, and each number once.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 256;                          // of a layer norm
constexpr int kManyThreads = 1024, kFewThreads = 128;  // of an RMS norm, by its length: of sums, too
constexpr int kHeld = 8;                               // numbers that a thread keeps in registers

/// y = (x * 1/sqrt(mean(x^2) + eps)) * weight (+ residual); squares are summed by fma, each thread its own, then over
/// the block.
template <int threads>
__global__ void __launch_bounds__(threads) rms_norm(NormArguments a, DeviceBatch batch, unsigned heads) {
  const int thread = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(a.n);
  float weights[kHeld], values[kHeld], residuals[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * threads;
    weights[j] = a.weight != nullptr && i < n ? a.weight[i] : 1.0f;
  }
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / heads);
  if (row >= num_rows(batch, a.x.outputs)) return;
  const std::int64_t first = std::int64_t{blockIdx.x % heads} * a.n;
  const float* const x = row_of(a.x, row) + first;
  const float* const residual = a.residual.data == nullptr ? nullptr : row_of(a.residual, row) + first;
  float* const y = row_of(a.y, row) + first;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * threads;
    values[j] = i < n ? x[i] : 0.0f;
    residuals[j] = residual != nullptr && i < n ? residual[i] : 0.0f;
  }
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < kHeld; ++j) squares = fmaf(values[j], values[j], squares);
  for (int i = thread + kHeld * threads; i < n; i += threads) squares = fmaf(x[i], x[i], squares);
  const float inverse = 1.0f / sqrtf(block_sum<threads>(squares) / static_cast<float>(n) + a.eps);
  const auto finished = [&](float value, float weight, float rest) {
    value = value * inverse * weight;
    return residual != nullptr ? value + rest : value;
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * threads;
    if (i < n) y[i] = finished(values[j], weights[j], residuals[j]);
  }
  for (int i = thread + kHeld * threads; i < n; i += threads) {
    y[i] = finished(x[i], a.weight != nullptr ? a.weight[i] : 1.0f, residual != nullptr ? residual[i] : 0.0f);
  }
}

/// y = (x - mean) * 1/sqrt(mean((x - mean)^2) + eps), then * weight and, by fma, + bias.
__global__ void layer_norm(LayerNormArguments a, DeviceBatch batch, unsigned heads) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / heads);
  if (row >= num_rows(batch, a.x.outputs)) return;
  const std::int64_t head = blockIdx.x % heads;
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

}  // namespace

Status launch_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const NormArguments*>(arguments);
  const auto heads = static_cast<unsigned>(a.heads);
  const unsigned blocks = static_cast<unsigned>(max_rows(launch, a.x.outputs)) * heads;
  if (a.n <= kHeld * kFewThreads) {
    return cuda::launch(rms_norm<kFewThreads>, blocks, kFewThreads, 0, launch.stream, a, *launch.batch, heads);
  }
  return cuda::launch(rms_norm<kManyThreads>, blocks, kManyThreads, 0, launch.stream, a, *launch.batch, heads);
}

Status launch_layer_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const LayerNormArguments*>(arguments);
  const auto heads = static_cast<unsigned>(a.heads);
  const unsigned blocks = static_cast<unsigned>(max_rows(launch, a.x.outputs)) * heads;
  return cuda::launch(layer_norm, blocks, kThreads, 0, launch.stream, a, *launch.batch, heads);
}

}  // namespace sterna::cuda
