/// What gathers rows of a matrix: embeddings, and the table of a relative bias.
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/matrix_element.cuh"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 256;

/// A block for 256 elements of a row: an element is found by itself, which is slow and does not matter beside matmuls.
__global__ void __launch_bounds__(kThreads) embed(EmbedArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const std::int64_t pieces = (a.w.k + kThreads - 1) / kThreads;
  const std::int64_t row = blockIdx.x / pieces;
  const std::int64_t i = blockIdx.x % pieces * kThreads + threadIdx.x;
  if (row >= num_tokens(batch) || i >= a.w.k) return;
  std::int32_t id = batch.tokens[row];
  if (a.ids == EmbeddedIds::kPositions) id = batch.positions[row];
  if (a.ids == EmbeddedIds::kTokenTypes) id = 0;  // every text is one segment
  const bool is_given = a.is_first && batch.given_rows[row] >= 0;
  row_of(a.y, row)[i] = is_given ? batch.given[batch.given_rows[row] * a.w.k + i] : element(a.w, id > 0 ? id : 0, i);
}

__global__ void __launch_bounds__(kThreads) relative_bias(RelativeBiasArguments a) {
  wait_for_previous();
  let_next_begin();
  const std::int64_t distances = 2 * a.farthest + 1;
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= distances * a.w.k) return;
  a.y[i] = element(a.w, a.buckets[i % distances], i / distances);
}

}  // namespace

Status launch_embed(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const EmbedArguments*>(arguments);
  const std::int64_t pieces = (a.w.k + kThreads - 1) / kThreads;
  return cuda::launch(embed, static_cast<unsigned>(launch.num_tokens * pieces), kThreads, 0, launch.stream, a,
                      *launch.batch);
}

Status launch_relative_bias(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const RelativeBiasArguments*>(arguments);
  const std::int64_t count = (2 * a.farthest + 1) * a.w.k;
  return cuda::launch(relative_bias, static_cast<unsigned>((count + kThreads - 1) / kThreads), kThreads, 0,
                      launch.stream, a);
}

}  // namespace sterna::cuda
