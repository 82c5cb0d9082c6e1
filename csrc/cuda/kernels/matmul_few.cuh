/// Matmuls of a few rows: reading the weights is what takes the time.
#pragma once

#include "cuda/kernels/matmul_columns.cuh"

namespace sterna::cuda {

/// x as it lies in global memory: every block reads all of it, from the caches.
template <int tiles>
struct GlobalColumns {
  const std::uint8_t* columns[tiles];  // of this lane, from its first value on
  std::int64_t low_offset;
  ColumnSums<tiles> sums;
  std::int64_t k = 0;  // where the block begins

  __device__ GlobalColumns(const PreparedRows& x, const Columns& c, int first)
      : low_offset(x.low_offset()), sums(x, c, first) {
    for (int tile = 0; tile < tiles; ++tile) {
      columns[tile] = x.base + c.x_row(first + tile * kColumns + lane_id() / 4) * x.row_bytes() + lane_id() % 4 * 8;
    }
  }
  __device__ uint2 words(int tile, int plane, int at) const {
    return *reinterpret_cast<const uint2*>(columns[tile] + k * 2 + plane * low_offset + at * 2);
  }
  __device__ float sum(int tile, int i, int at) const { return sums.at(tile, i, k, at); }
};

/// A block computes one panel for 8 * tiles columns, each warp one of the parts: reading the weights from memory is
/// what takes the time, and all multiprocessors must take part in it.
template <LayoutId id, int tiles>
struct FewColumns {
  using W = Weights<id>;
  static constexpr int kThreads = kParts * kWarp;
  static constexpr int kMaxColumns = tiles * kColumns;
  /// Pieces that a warp has room for. Devices before 8.0 have less shared memory, and nothing comes ahead there.
  static constexpr int stages(bool copies_ahead) {
    return !copies_ahead ? 1 : W::kPieceBytes <= 2400 ? 4 : W::kPieceBytes <= 4096 ? 3 : 2;
  }
  static constexpr int kStages = stages(kCopiesAhead);
  static constexpr int kResultFloats = kPanelRows * kMaxColumns;  // of a warp and matrix
  /// Of a warp: its pieces, then, when these are done with, its results of gate and up.
  static constexpr int warp_bytes(int stages) {
    const int ring = stages * W::kPieceBytes;
    return ring > 2 * kResultFloats * 4 ? ring : 2 * kResultFloats * 4;
  }
  static constexpr int kWarpBytes = warp_bytes(kStages);
  /// Of the code that runs on the current device.
  static int shared_bytes() { return kParts * warp_bytes(stages(has_copies_ahead())); }

  __device__ static void run(const MatmulArguments& a, const DeviceBatch& batch, unsigned column_blocks) {
    const int warp = warp_id();
    std::uint8_t* const ring = dynamic_shared() + warp * kWarpBytes;
    const std::int64_t panel = blockIdx.x / column_blocks;
    const std::int64_t blocks = a.x.k / W::kBlock;
    // Which weights these are does not depend on what ran before, but for experts.
    const bool is_early = a.kind != MatmulKind::kExperts;
    if (!is_early) wait_for_previous();
    const Columns columns = columns_of(a, batch, static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(blockIdx.x % column_blocks) * kMaxColumns;
    if (first >= columns.count) {
      wait_for_previous();  // no grid may be complete before those in front of it
      return;
    }

    const int matrices = columns.up_panels == nullptr ? 1 : 2;
    float sums[2][tiles][4] = {};
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
      if (matrix >= matrices) break;
      const std::uint8_t* const weights =
          matrix == 0 ? columns.panels + panel * a.w.panel_bytes : columns.up_panels + panel * a.up.panel_bytes;
      Walk<id> ahead(blocks, warp, warp + 1);
      int asked = 0;
      const auto ask = [&] {
        if (!ahead.done()) {
          copy_panel(ring + asked % kStages * W::kPieceBytes, weights, ahead);
          ahead.next();
        }
        ++asked;
        commit_copies();
      };
#pragma unroll 1
      while (asked < kStages - 1) ask();
      if (matrix == 0) {
        if (is_early) wait_for_previous();
        let_next_begin();
      }
      GlobalColumns<tiles> x(a.x, columns, first);
      int stage = 0;
      for (Walk<id> walk(blocks, warp, warp + 1); !walk.done(); walk.next(), ++stage) {
        if constexpr (kStages == 1) {
          __syncwarp();  // all lanes are done with the piece before
          ask();
          wait_copies<0>();
          __syncwarp();
        } else {
          wait_copies<kStages - 2>();
          __syncwarp();  // all lanes' copies are there, and all lanes are done with the piece before
          ask();
        }
        const std::uint8_t* const piece = ring + stage % kStages * W::kPieceBytes;
        for (int block = 0; block < walk.count(); ++block) {
          x.k = (walk.block + block) * W::kBlock;
          multiply<id, tiles>(sums[matrix], piece + block * W::kBlockBytes, 0, W::kBlock / kUnit, x);
        }
      }
      wait_copies<0>();
      __syncwarp();
    }

    auto* const results = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = lane_id() / 4 + i / 2 * 8;
          const int column = tile * kColumns + lane_id() % 4 * 2 + i % 2;
          results[matrix * kResultFloats + column * kPanelRows + row] = sums[matrix][tile][i];
        }
      }
    }
    __syncthreads();
    const int left = columns.count - first;
    const int wanted = kPanelRows * (left < kMaxColumns ? left : kMaxColumns);
    for (int i = static_cast<int>(threadIdx.x); i < wanted; i += kThreads) {
      float total[2];
      for (int matrix = 0; matrix < 2; ++matrix) {
        for (int part = 0; part < kParts; ++part) {
          const auto* of_part = reinterpret_cast<const float*>(dynamic_shared() + part * kWarpBytes);
          const float sum = of_part[matrix * kResultFloats + i];
          total[matrix] = part == 0 ? sum : total[matrix] + sum;
        }
      }
      finish(a, columns, panel * kPanelRows + i % kPanelRows, first + i / kPanelRows, total[0], total[1]);
    }
  }
};

template <LayoutId id, int tiles>
__global__ void __launch_bounds__(kParts* kWarp)
    few_columns(MatmulArguments a, DeviceBatch batch, unsigned column_blocks) {
  FewColumns<id, tiles>::run(a, batch, column_blocks);
}

}  // namespace sterna::cuda
