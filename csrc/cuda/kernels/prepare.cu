/// Rows of floats become operands of matmuls (see PreparedRows): a block for each row. Of few rows it is waiting that
/// takes the time, and matmuls wait for them: each number is loaded once and stays in a register.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kManyThreads = 1024, kFewThreads = 128;  // by the length of rows: of sums, too
constexpr int kSumOf = 16;

/// The power of two that brings the largest magnitude to 2^14 .. 2^15, where binary16 has it exact to 11 bits and sums
/// of two stay finite; 1 where it is 0 or not finite.
__device__ float power_for(float largest) {
  const auto exponent = static_cast<std::int32_t>(float_to_bits(largest) >> 23);
  if (largest == 0.0f || exponent == 255) return 1.0f;
  const std::int32_t wanted = 127 + 14 - exponent;
  return bits_to_float(static_cast<std::uint32_t>((wanted < 126 ? wanted : 126) + 127) << 23);
}

/// How the values of one row become numbers of a form.
struct Rounding {
  PreparedForm form;
  float factor;  // that values are multiplied by before they are rounded
  float scale;   // that rounded values are multiplied by afterwards

  __device__ Rounding(PreparedForm form, float largest) : form(form), factor(1.0f), scale(1.0f) {
    if (form == PreparedForm::kInt8) {
      scale = largest / 127.0f;
      factor = scale < 0x1p-126f ? 0.0f : 127.0f / largest;
      if (scale < 0x1p-126f) scale = 0.0f;
    } else if (form == PreparedForm::kHalf || form == PreparedForm::kTwoHalves) {
      factor = power_for(largest);
      scale = 1.0f / factor;
    }
    if (largest != largest || largest - largest != 0.0f) scale = largest - largest;  // NaN for what is not finite
  }

  __device__ std::uint16_t round(float value) const {
    value = value * factor;
    if (form == PreparedForm::kTwoBfloats) return float_to_bfloat(value);
    if (form == PreparedForm::kInt8) {
      const std::int32_t code = round_to_int(value);
      value = static_cast<float>(code < -127 ? -127 : code > 127 ? 127 : code);
    }
    return float_to_half(value);
  }
  __device__ float value_of(std::uint16_t rounded) const {
    return form == PreparedForm::kTwoBfloats ? bfloat_to_float(rounded) : half_to_float(rounded);
  }
  /// What `round` left of the value.
  __device__ std::uint16_t rest(float value, std::uint16_t rounded) const {
    value = value * factor - value_of(rounded);
    return form == PreparedForm::kTwoBfloats ? float_to_bfloat(value) : float_to_half(value);
  }
};

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
