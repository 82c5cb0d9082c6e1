/// Rotary positions: the tables of a run, and heads that are rotated by themselves.
#include "base/sine.h"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/heads.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 128;

/// A thread for each pair of each row, with the bits of the CPU; once a run.
__global__ void __launch_bounds__(kThreads) rope_table(RopeTableArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const auto index = static_cast<std::int32_t>(blockIdx.x * kThreads + threadIdx.x);
  const std::int32_t row = index / a.pairs;
  const std::int32_t i = index % a.pairs;
  if (row >= num_tokens(batch)) return;
  const bool is_long = a.long_frequencies != nullptr && batch.is_long[batch.sequences[row]] != 0;
  const float frequency = (is_long ? a.long_frequencies : a.frequencies)[i];
  const auto [sine, cosine] = sine_cosine(static_cast<float>(batch.positions[row]) * frequency);
  row_of(a.cosines, row)[i] = static_cast<float>(cosine) * a.factor;
  row_of(a.sines, row)[i] = static_cast<float>(sine) * a.factor;
}

/// A warp for each head of each row; memory bounds it.
__global__ void __launch_bounds__(kThreads) rope(RopeArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const std::int32_t index = static_cast<std::int32_t>(blockIdx.x) * (kThreads / kWarp) + warp_id();
  const std::int32_t row = index / a.heads;
  if (row >= num_tokens(batch)) return;
  const std::int64_t offset = std::int64_t{index % a.heads} * a.head_dim;
  float* const y = row_of(a.y, row) + offset;
  transform_head(a.transform, row, a.head_dim, row_of(a.x, row) + offset,
                 [y](std::int32_t i, float value) { y[i] = value; });
}

}  // namespace

Status launch_rope_table(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const RopeTableArguments*>(arguments);
  const std::int64_t blocks = (std::int64_t{launch.num_tokens} * a.pairs + kThreads - 1) / kThreads;
  return cuda::launch(rope_table, static_cast<unsigned>(blocks), kThreads, 0, launch.stream, a, *launch.batch);
}

Status launch_rope(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const RopeArguments*>(arguments);
  constexpr int kWarps = kThreads / kWarp;
  const std::int64_t blocks = (std::int64_t{launch.num_tokens} * a.heads + kWarps - 1) / kWarps;
  return cuda::launch(rope, static_cast<unsigned>(blocks), kThreads, 0, launch.stream, a, *launch.batch);
}

}  // namespace sterna::cuda
