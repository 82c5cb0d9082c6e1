/// Adapters: y += scale * factor * b a x for the rows of sequences that use one, in two kernels.
///
/// Both are bound by reading the adapter once for each tile of rows: of few rows a tile is one row and there are as
/// many blocks as can share it out; of many rows it is kTileRows rows. Tiles without a row that uses the adapter end at
/// once. A row's sums are taken in the same order in all tiles.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kDownThreads = 256;
constexpr int kUpThreads = 64;
constexpr int kTileRows = 8;

/// The sequence of row `row` of y if it uses the adapter, otherwise -1.
__device__ inline std::int32_t user_of(const LoraArguments& a, const DeviceBatch& batch, std::int32_t row) {
  if (row >= num_rows(batch, a.y.outputs)) return -1;
  const std::int32_t sequence = batch.sequences[token_row(batch, a.y.outputs, row)];
  return batch.adapters[sequence] == a.adapter ? sequence : -1;
}

/// Whether each row of a tile uses the adapter, as bits; the first that does stands in for those that do not.
template <int rows>
struct Tile {
  unsigned users = 0;
  std::int32_t first, some = -1;

  __device__ Tile(const LoraArguments& a, const DeviceBatch& batch, std::int32_t first) : first(first) {
    for (int r = rows - 1; r >= 0; --r) {
      if (user_of(a, batch, first + r) < 0) continue;
      users |= 1u << r;
      some = first + r;
    }
  }
  __device__ bool has(int r) const { return (users >> r & 1u) != 0; }
  __device__ std::int32_t readable(int r) const { return has(r) ? first + r : some; }
};

/// products[row][rank] = (a x) * (scale * factor): products of x and a are summed by fma, each thread those
/// kDownThreads apart, then over the block. A block computes `ranks` of them for the rows of a tile.
template <int rows, int ranks>
__global__ void __launch_bounds__(kDownThreads) lora_down(LoraArguments a, DeviceBatch batch, std::int32_t parts) {
  constexpr int kWarps = kDownThreads / kWarp;
  __shared__ float partial[ranks * rows][kWarps];
  wait_for_previous();
  let_next_begin();
  const Tile<rows> tile(a, batch, static_cast<std::int32_t>(blockIdx.x) / parts * rows);
  if (tile.users == 0) return;
  const std::int64_t first_rank = static_cast<std::int32_t>(blockIdx.x) % parts * ranks;
  const float* x[rows];
  const float* w[ranks];
#pragma unroll
  for (int r = 0; r < rows; ++r) x[r] = row_of(a.x, tile.readable(r));
#pragma unroll
  for (int j = 0; j < ranks; ++j) w[j] = a.a + (first_rank + j < a.rank ? first_rank + j : a.rank - 1) * a.k;
  float sums[ranks][rows] = {};
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < a.k; i += kDownThreads) {
    float values[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) values[r] = x[r][i];
#pragma unroll
    for (int j = 0; j < ranks; ++j) {
      const float weight = w[j][i];
#pragma unroll
      for (int r = 0; r < rows; ++r) sums[j][r] = fmaf(values[r], weight, sums[j][r]);
    }
  }
#pragma unroll
  for (int j = 0; j < ranks; ++j) {
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float sum = warp_sum(sums[j][r]);
      if (lane_id() == 0) partial[j * rows + r][warp_id()] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x >= ranks * rows) return;
  const std::int32_t row = tile.first + static_cast<std::int32_t>(threadIdx.x) % rows;
  const std::int64_t rank = first_rank + threadIdx.x / rows;
  const std::int32_t sequence = user_of(a, batch, row);
  if (sequence < 0 || rank >= a.rank) return;
  float sum = partial[threadIdx.x][0];
  for (int warp = 1; warp < kWarps; ++warp) sum = sum + partial[threadIdx.x][warp];
  a.products[row * a.rank + rank] = sum * (batch.adapter_scales[sequence] * a.factor);
}

/// y += b products, rank by rank; a thread computes `columns` floats, kUpThreads apart, for the rows of a tile.
template <int rows, int columns>
__global__ void __launch_bounds__(kUpThreads) lora_up(LoraArguments a, DeviceBatch batch, std::int32_t parts) {
  wait_for_previous();
  let_next_begin();
  const Tile<rows> tile(a, batch, static_cast<std::int32_t>(blockIdx.x) / parts * rows);
  if (tile.users == 0) return;
  const std::int64_t first_column =
      static_cast<std::int32_t>(blockIdx.x) % parts * (kUpThreads * columns) + static_cast<std::int32_t>(threadIdx.x);
  std::int64_t column[columns];
#pragma unroll
  for (int c = 0; c < columns; ++c) {
    const std::int64_t wanted = first_column + c * kUpThreads;
    column[c] = wanted < a.n ? wanted : a.n - 1;
  }
  const float* products[rows];
  float sums[rows][columns];
#pragma unroll
  for (int r = 0; r < rows; ++r) {
    products[r] = a.products + tile.readable(r) * a.rank;
#pragma unroll
    for (int c = 0; c < columns; ++c) sums[r][c] = row_of(a.y, tile.readable(r))[column[c]];
  }
#pragma unroll 8
  for (std::int64_t j = 0; j < a.rank; ++j) {
    float weights[columns];
#pragma unroll
    for (int c = 0; c < columns; ++c) weights[c] = a.b[j * a.n + column[c]];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const float product = products[r][j];
#pragma unroll
      for (int c = 0; c < columns; ++c) sums[r][c] = fmaf(product, weights[c], sums[r][c]);
    }
  }
#pragma unroll
  for (int r = 0; r < rows; ++r) {
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      if (tile.has(r) && first_column + c * kUpThreads < a.n) row_of(a.y, tile.first + r)[column[c]] = sums[r][c];
    }
  }
}

template <int rows, int ranks, int columns>
Status launch_tiles(const LoraArguments& a, const Launch& launch) {
  const std::int32_t tiles = (max_rows(launch, a.y.outputs) + rows - 1) / rows;
  const auto rank_parts = static_cast<std::int32_t>((a.rank + ranks - 1) / ranks);
  const auto column_parts = static_cast<std::int32_t>((a.n + kUpThreads * columns - 1) / (kUpThreads * columns));
  const Status status = cuda::launch(lora_down<rows, ranks>, static_cast<unsigned>(tiles * rank_parts), kDownThreads, 0,
                                     launch.stream, a, *launch.batch, rank_parts);
  if (status != 0) return status;
  return cuda::launch(lora_up<rows, columns>, static_cast<unsigned>(tiles * column_parts), kUpThreads, 0, launch.stream,
                      a, *launch.batch, column_parts);
}

}  // namespace

Status launch_lora(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const LoraArguments*>(arguments);
  if (max_rows(launch, a.y.outputs) <= kTileRows) return launch_tiles<1, 1, 1>(a, launch);
  return launch_tiles<kTileRows, 4, 2>(a, launch);
}

}  // namespace sterna::cuda
