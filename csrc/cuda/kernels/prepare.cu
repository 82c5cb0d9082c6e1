/// Rows of floats become operands of matmuls (see PreparedRows): a block for each row. Of few rows it is waiting that
/// takes the time, and matmuls wait for them: each number is loaded once and stays in a register.
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/rounding.cuh"

namespace sterna::cuda {
namespace {

constexpr int kManyThreads = 1024, kFewThreads = 128;  // by the length of rows: of sums, too

template <int threads>
__global__ void __launch_bounds__(threads) prepare(PrepareArguments a, DeviceBatch batch) {
  constexpr int kHeld = threads == kManyThreads ? 16 : 8;  // of a thread, those that are `threads` apart
  constexpr int kAllHeld = kHeld * threads;
  const int thread = static_cast<int>(threadIdx.x);
  const int k = static_cast<int>(a.k), to_k = static_cast<int>(a.to.k);
  float norms[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {  // weights: they do not depend on what ran before
    const int i = thread + j * threads;
    norms[j] = a.norm != nullptr && i < k ? a.norm[i] : 0.0f;
  }
  wait_for_previous();
  let_next_begin();
  const std::int64_t index = blockIdx.x;
  const std::int64_t per_row = a.pairs != nullptr ? a.used : a.parts;
  if (index >= num_rows(batch, a.x.outputs) * per_row) return;
  const float* x;
  float weight = 1.0f;
  if (a.pairs != nullptr) {
    const std::int64_t pair = a.pairs[index];
    x = row_of(a.x, a.is_sorted ? index : pair / a.used);
    if (a.weights.data != nullptr) weight = row_of(a.weights, pair / a.used)[pair % a.used];
  } else {
    x = row_of(a.x, index / a.parts) + index % a.parts * a.k;
  }
  float held[kHeld];
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    const int i = thread + j * threads;
    held[j] = i < k ? x[i] : 0.0f;
  }
  float inverse = 1.0f;
  if (a.norm != nullptr) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) squares = fmaf(held[j], held[j], squares);
    for (int i = thread + kAllHeld; i < k; i += threads) squares = fmaf(x[i], x[i], squares);
    inverse = 1.0f / sqrtf(block_sum<threads>(squares) / static_cast<float>(k) + a.eps);
  }
  const auto finished = [&](float value, float norm) {
    if (a.norm != nullptr) value = value * inverse * norm;
    return a.weights.data != nullptr ? value * weight : value;
  };
  const auto value_at = [&](int i) { return i < k ? finished(x[i], a.norm != nullptr ? a.norm[i] : 0.0f) : 0.0f; };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) held[j] = thread + j * threads < k ? finished(held[j], norms[j]) : 0.0f;

  std::uint8_t* const row = a.to.base + index * a.to.row_bytes();
  auto& row_scale = reinterpret_cast<float*>(a.to.base + a.to.scale_offset())[index];
  if (a.to.form == PreparedForm::kFloat) {
    auto* const floats = reinterpret_cast<float*>(row);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (thread + j * threads < to_k) floats[thread + j * threads] = held[j];
    }
    for (int i = thread + kAllHeld; i < to_k; i += threads) floats[i] = value_at(i);
    if (threadIdx.x == 0) row_scale = 1.0f;
    return;
  }
  float largest = 0.0f;
  if (a.to.form != PreparedForm::kTwoBfloats) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) largest = larger(largest, fabsf(held[j]));
    for (int i = thread + kAllHeld; i < k; i += threads) largest = larger(largest, fabsf(value_at(i)));
    largest = block_max<threads>(largest);
  }
  const Rounding rounding(a.to.form, largest);
  if (threadIdx.x == 0) row_scale = rounding.scale;
  auto* const values = reinterpret_cast<std::uint16_t*>(row);
  auto* const low = reinterpret_cast<std::uint16_t*>(row + a.to.low_offset());
  float* const sums = reinterpret_cast<float*>(a.to.base + a.to.sum_offset()) + index * a.to.sum_stride();
  // k is a multiple of 32: all lanes of a warp have a value, or none has.
  const auto store = [&](int i, float value) {
    const std::uint16_t rounded = rounding.round(value);
    values[i] = rounded;
    if (a.to.has_low()) low[i] = rounding.rest(value, rounded);
    if (!a.to.has_sums()) return;
    float sum = half_to_float(rounded);
#pragma unroll
    for (int distance = kSumOf / 2; distance > 0; distance /= 2) {
      sum = sum + __shfl_xor_sync(kAllLanes, sum, distance);
    }
    if (i % kSumOf == 0) sums[i / kSumOf] = sum;
  };
#pragma unroll
  for (int j = 0; j < kHeld; ++j) {
    if (thread + j * threads < to_k) store(thread + j * threads, held[j]);
  }
  for (int i = thread + kAllHeld; i < to_k; i += threads) store(i, value_at(i));
}

}  // namespace

Status launch_prepare(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const PrepareArguments*>(arguments);
  const std::int64_t rows = max_rows(launch, a.x.outputs) * (a.pairs != nullptr ? a.used : a.parts);
  const auto blocks = static_cast<unsigned>(rows);
  if (a.k <= 8 * kFewThreads) {
    return cuda::launch(prepare<kFewThreads>, blocks, kFewThreads, 0, launch.stream, a, *launch.batch);
  }
  return cuda::launch(prepare<kManyThreads>, blocks, kManyThreads, 0, launch.stream, a, *launch.batch);
}

}  // namespace sterna::cuda
