/// Matmuls of many rows: the tensor cores are what takes the time.
#pragma once

#include "cuda/kernels/matmul_columns.cuh"

namespace sterna::cuda {

/// 64 columns of x in shared memory, 128 k of them at a time.
template <LayoutId id>
struct SharedColumns {
  using W = Weights<id>;
  static constexpr int kMaxColumns = 64;
  static constexpr int kStretch = 128;
  static constexpr int kColumnBytes = kStretch * 2 + 16;  // the 16 more spread columns over the banks
  static constexpr int kPlaneBytes = kMaxColumns * kColumnBytes;
  static constexpr int kBytes = W::kPlanes * kPlaneBytes;

  const std::uint8_t* values = nullptr;
  std::int64_t k = 0;  // where the block begins
  int shift = 0;       // from there to where `values` begin
  ColumnSums<kMaxColumns / kColumns> sums;

  __device__ SharedColumns(const PreparedRows& x, const Columns& c, int first) : sums(x, c, first) {}
  __device__ uint2 words(int tile, int plane, int at) const {
    const int column = tile * kColumns + lane_id() / 4;
    const std::uint8_t* from = values + plane * kPlaneBytes + column * kColumnBytes;
    return *reinterpret_cast<const uint2*>(from + (at - shift) * 2 + lane_id() % 4 * 8);
  }
  __device__ float sum(int tile, int i, int at) const { return sums.at(tile, i, k, at); }

  /// Asks for `length` values of each column from `first_k` on; `threads` threads share the work.
  __device__ static void copy(std::uint8_t* to, const PreparedRows& x, const Columns& columns, int first,
                              std::int64_t first_k, int length, int thread, int threads) {
    const int left = columns.count - first;
    const int count = left < kMaxColumns ? left : kMaxColumns;
    const int chunks = length / 8;  // of 16 bytes
    for (int i = thread; i < count * chunks; i += threads) {
      const int column = i / chunks;
      const int at = i % chunks * 16;
      const std::uint8_t* from = x.base + columns.x_row(first + column) * x.row_bytes() + first_k * 2 + at;
      std::uint8_t* const target = to + column * kColumnBytes + at;
      copy_async_kept(target, from);
      if constexpr (W::kPlanes == 2) copy_async_kept(target + kPlaneBytes, from + x.low_offset());
    }
  }
};

/// A block computes eight panels for 64 columns, two panels a warp (of a gated matmul gate and up of one), all walking
/// through k together with the columns in shared memory: each weight that is decoded meets 64 columns.
template <LayoutId id>
struct ManyColumns {
  using W = Weights<id>;
  using X = SharedColumns<id>;
  static constexpr int kMaxColumns = X::kMaxColumns;
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kTiles = X::kMaxColumns / kColumns;
  static constexpr int kStages = 2;
  /// A piece of weights meets x in stretches.
  static constexpr int kStretches = W::kBlock > X::kStretch ? W::kBlock / X::kStretch : 1;
  static constexpr int kWeightBytes = kWarps * 2 * W::kPieceBytes;
  static constexpr int kSharedBytes = kStages * (X::kBytes + kWeightBytes);

  /// Panels of the matrix that a block computes.
  static constexpr unsigned panels(bool is_gated) { return is_gated ? kWarps : 2 * kWarps; }

  __device__ static void run(const MatmulArguments& a, const DeviceBatch& batch, unsigned column_blocks) {
    wait_for_previous();
    let_next_begin();
    const Product& product = a.products[0];
    const Columns columns = columns_of(a, product, batch, static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(blockIdx.x % column_blocks) * X::kMaxColumns;
    if (first >= columns.count) return;
    const int warp = warp_id();
    const bool is_gated = columns.up_panels != nullptr;
    const std::int64_t last_panel = (product.w.n + kPanelRows - 1) / kPanelRows - 1;
    const std::int64_t panel =
        (static_cast<std::int64_t>(blockIdx.x / column_blocks) * kWarps + warp) * (is_gated ? 1 : 2);
    // Warps beyond the last panel compute it again, and keep nothing.
    const auto panel_at = [&](const std::uint8_t* panels, std::int64_t index, std::int64_t bytes) {
      return panels + (index < last_panel ? index : last_panel) * bytes;
    };
    const std::uint8_t* const weights[2] = {panel_at(columns.panels, panel, product.w.panel_bytes),
                                            is_gated ? panel_at(columns.up_panels, panel, a.up.panel_bytes)
                                                     : panel_at(columns.panels, panel + 1, product.w.panel_bytes)};
    std::uint8_t* const x_ring = dynamic_shared();
    std::uint8_t* const ring = x_ring + kStages * X::kBytes + warp * 2 * W::kPieceBytes;
    const std::int64_t blocks = a.x.k / W::kBlock;

    // A stage is a stretch; its weights come with the first stretch of their piece.
    const auto ask = [&](const Walk<id>& walk, int piece, int stretch, int stage) {
      const int length = kStretches > 1 ? X::kStretch : walk.count() * W::kBlock;
      X::copy(x_ring + stage % kStages * X::kBytes, a.x, columns, first, walk.block * W::kBlock + stretch * X::kStretch,
              length, static_cast<int>(threadIdx.x), kThreads);
      if (stretch > 0) return;
      for (int i = 0; i < 2; ++i) {
        copy_panel(ring + piece % kStages * kWeightBytes + i * W::kPieceBytes, weights[i], walk);
      }
    };
    float totals[2][kTiles][4];
    float sums[2][kTiles][4] = {};
    X x(a.x, columns, first);
    Walk<id> walk(blocks, 0, kParts);
    Walk<id> ahead = walk;
    ask(ahead, 0, 0, 0);
    commit_copies();
    int stage = 0;
    for (int piece = 0; !walk.done(); ++piece, walk.next()) {
#pragma unroll
      for (int stretch = 0; stretch < kStretches; ++stretch, ++stage) {
        wait_copies<0>();
        __syncthreads();  // everybody's copies are there, and everybody is done with the stage before
        if (stretch + 1 < kStretches) {
          ask(walk, piece, stretch + 1, stage + 1);
        } else {
          ahead.next();
          if (!ahead.done()) ask(ahead, piece + 1, 0, stage + 1);
        }
        commit_copies();
        x.values = x_ring + stage % kStages * X::kBytes;
        for (int block = 0; block < walk.count(); ++block) {
          x.k = (walk.block + block) * W::kBlock;
          x.shift = kStretches > 1 ? stretch * X::kStretch : -block * W::kBlock;
          constexpr int kUnits = (kStretches > 1 ? X::kStretch : W::kBlock) / kUnit;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const std::uint8_t* const from = ring + piece % kStages * kWeightBytes + i * W::kPieceBytes;
            multiply<id, kTiles>(sums[i], from + block * W::kBlockBytes, stretch * kUnits, (stretch + 1) * kUnits, x);
          }
        }
      }
      if (!walk.ends_part()) continue;
      const bool is_first = walk.part == 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            totals[i][tile][j] = is_first ? sums[i][tile][j] : totals[i][tile][j] + sums[i][tile][j];
            sums[i][tile][j] = 0.0f;
          }
        }
      }
    }
    wait_copies<0>();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = lane_id() / 4 + j / 2 * 8;
        const int column = first + tile * kColumns + lane_id() % 4 * 2 + j % 2;
        if (is_gated) {
          finish(a, product, columns, panel * kPanelRows + row, column, totals[0][tile][j], totals[1][tile][j]);
        } else {
          finish(a, product, columns, panel * kPanelRows + row, column, totals[0][tile][j], 0.0f);
          finish(a, product, columns, (panel + 1) * kPanelRows + row, column, totals[1][tile][j], 0.0f);
        }
      }
    }
  }
};

template <LayoutId id>
__global__ void __launch_bounds__(ManyColumns<id>::kThreads)
    many_columns(MatmulArguments a, DeviceBatch batch, unsigned column_blocks) {
  ManyColumns<id>::run(a, batch, column_blocks);
}

}  // namespace sterna::cuda
