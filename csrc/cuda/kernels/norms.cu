/// Norms of rows: a block for each row, or each head of one. Of few rows it is waiting that takes the time: what the
/// rows before do not decide is loaded before they are there, and each number once.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kManyThreads = 1024, kFewThreads = 128;  // by the length of what is normed: of sums, too
constexpr int kHeld = 8;                               // numbers of a row that a thread keeps in registers

/// The numbers of a thread are `threads` apart: first those that it keeps, then the rest of long rows.
template <int threads, class Fn>
__device__ void each_held(int n, Fn fn) {
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = static_cast<int>(threadIdx.x) + j * threads;
    if (i < n) fn(j, i);
  }
}
template <int threads, class Fn>
__device__ void each_other(int n, Fn fn) {
  for (int i = static_cast<int>(threadIdx.x) + kHeld * threads; i < n; i += threads) fn(i);
}

/// y = (x * 1/sqrt(mean(x^2) + eps)) * weight (+ residual); squares are summed by fma, each thread its own, then over
/// the block.
template <int threads>
__global__ void __launch_bounds__(threads) rms_norm(NormArguments a, DeviceBatch batch, unsigned heads) {
  const int n = static_cast<int>(a.n);
  float values[kHeld], weights[kHeld], residuals[kHeld];
  const auto weight_at = [&](int i) { return a.weight != nullptr ? a.weight[i] : 1.0f; };
  each_held<threads>(n, [&](int j, int i) { weights[j] = weight_at(i); });
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / heads);
  if (row >= num_rows(batch, a.x.outputs)) return;
  const std::int64_t first = std::int64_t{blockIdx.x % heads} * a.n;
  const float* const x = row_of(a.x, row) + first;
  const float* const residual = a.residual.data == nullptr ? nullptr : row_of(a.residual, row) + first;
  float* const y = row_of(a.y, row) + first;
  each_held<threads>(n, [&](int j, int i) {
    values[j] = x[i];
    residuals[j] = residual != nullptr ? residual[i] : 0.0f;
  });
  float squares = 0.0f;
  each_held<threads>(n, [&](int j, int) { squares = fmaf(values[j], values[j], squares); });
  each_other<threads>(n, [&](int i) { squares = fmaf(x[i], x[i], squares); });
  const float inverse = 1.0f / sqrtf(block_sum<threads>(squares) / static_cast<float>(n) + a.eps);
  const auto finished = [&](float value, float weight, float rest) {
    value = value * inverse * weight;
    return residual != nullptr ? value + rest : value;
  };
  each_held<threads>(n, [&](int j, int i) { y[i] = finished(values[j], weights[j], residuals[j]); });
  each_other<threads>(n, [&](int i) { y[i] = finished(x[i], weight_at(i), residual != nullptr ? residual[i] : 0.0f); });
}

/// y = (x - mean) * 1/sqrt(mean((x - mean)^2) + eps), then * weight and, by fma, + bias.
template <int threads>
__global__ void __launch_bounds__(threads) layer_norm(LayerNormArguments a, DeviceBatch batch, unsigned heads) {
  const int n = static_cast<int>(a.n);
  const std::int64_t head = blockIdx.x % heads;
  float values[kHeld], weights[kHeld], biases[kHeld];
  const auto weight_at = [&](int i) { return a.weight != nullptr ? a.weight[head * a.head_step + i] : 1.0f; };
  const auto bias_at = [&](int i) { return a.bias != nullptr ? a.bias[head * a.head_step + i] : 0.0f; };
  each_held<threads>(n, [&](int j, int i) {
    weights[j] = weight_at(i);
    biases[j] = bias_at(i);
  });
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / heads);
  if (row >= num_rows(batch, a.x.outputs)) return;
  const float* const x = row_of(a.x, row) + head * a.n;
  float* const y = row_of(a.y, row) + head * a.n;
  each_held<threads>(n, [&](int j, int i) { values[j] = x[i]; });
  float total = 0.0f;
  each_held<threads>(n, [&](int j, int) { total = total + values[j]; });
  each_other<threads>(n, [&](int i) { total = total + x[i]; });
  const float mean = block_sum<threads>(total) / static_cast<float>(n);
  float squares = 0.0f;
  const auto add_square = [&](float value) { squares = fmaf(value - mean, value - mean, squares); };
  each_held<threads>(n, [&](int j, int) { add_square(values[j]); });
  each_other<threads>(n, [&](int i) { add_square(x[i]); });
  const float inverse = 1.0f / sqrtf(block_sum<threads>(squares) / static_cast<float>(n) + a.eps);
  const auto finished = [&](float value, float weight, float bias) {
    value = (value - mean) * inverse;
    return a.bias != nullptr ? fmaf(value, weight, bias) : value * weight;
  };
  each_held<threads>(n, [&](int j, int i) { y[i] = finished(values[j], weights[j], biases[j]); });
  each_other<threads>(n, [&](int i) { y[i] = finished(x[i], weight_at(i), bias_at(i)); });
}

template <class Arguments>
Status launch_by_length(void (*few)(Arguments, DeviceBatch, unsigned), void (*many)(Arguments, DeviceBatch, unsigned),
                        const Arguments& a, const Launch& launch) {
  const auto heads = static_cast<unsigned>(a.heads);
  const unsigned blocks = static_cast<unsigned>(max_rows(launch, a.x.outputs)) * heads;
  const bool is_short = a.n <= kHeld * kFewThreads;
  return cuda::launch(is_short ? few : many, blocks, is_short ? kFewThreads : kManyThreads, 0, launch.stream, a,
                      *launch.batch, heads);
}

}  // namespace

Status launch_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const NormArguments*>(arguments);
  return launch_by_length(rms_norm<kFewThreads>, rms_norm<kManyThreads>, a, launch);
}

Status launch_layer_norm(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const LayerNormArguments*>(arguments);
  return launch_by_length(layer_norm<kFewThreads>, layer_norm<kManyThreads>, a, launch);
}

}  // namespace sterna::cuda
