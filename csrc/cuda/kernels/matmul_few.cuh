/// Matmuls of a few rows: reading the weights is what takes the time.
#pragma once

#include "cuda/kernels/matmul_columns.cuh"

namespace sterna::cuda {

/// x as it lies in global memory: every block reads all of it, from the caches. Of one tile pointers go along with k:
/// they cost fewer instructions, and registers are enough.
template <int tiles>
struct GlobalColumns {
  const std::uint8_t* columns[tiles];  // of this lane, from its first value on
  std::int64_t low_offset;
  ColumnSums<tiles> sums;
  std::int64_t k = 0;  // where the block begins, from where the pointers are

  __device__ GlobalColumns(const PreparedRows& x, const Columns& c, int first, std::int64_t first_k)
      : low_offset(x.low_offset()), sums(x, c, first) {
    for (int tile = 0; tile < tiles; ++tile) {
      columns[tile] = x.base + c.x_row(first + tile * kColumns + lane_id() / 4) * x.row_bytes() + lane_id() % 4 * 8;
    }
    advance(first_k);
  }
  __device__ void advance(std::int64_t by) {
    if constexpr (tiles == 1) {
      columns[0] += by * 2;
      sums.base += by / kSumOf;
    } else {
      k += by;
    }
  }
  __device__ uint2 words(int tile, int plane, int at) const {
    return *reinterpret_cast<const uint2*>(columns[tile] + k * 2 + plane * low_offset + at * 2);
  }
  __device__ float sum(int tile, int i, int at) const { return sums.at(tile, i, k, at); }
};

/// Few rows that a block prepares itself, in shared memory: each warp its part of k, as prepare.cu does it for all.
template <LayoutId id>
struct OwnColumns {
  static constexpr bool kHasSums = layout_spec(id).has_min;

  // From where the block begins, that of this lane:
  const std::uint8_t* values;  // of its column
  const float* sums[2];        // of two columns

  /// `memory` is the warp's; its part begins at first_k and has `length` values.
  __device__ OwnColumns(const MatmulArguments& a, const Columns& c, std::uint8_t* memory, std::int64_t first_k,
                        int length) {
    const int row_bytes = static_cast<int>(preparing_room(a.x.k)) * 2 + 32;
    const int sum_stride = static_cast<int>(preparing_room(a.x.k)) / kSumOf;
    auto* const all_sums = reinterpret_cast<float*>(memory + c.count * row_bytes);
    const int chunks = length / kSumOf;
    for (int i = lane_id(); i < c.count * chunks; i += kWarp) {
      const int row = i / chunks, chunk = i % chunks;
      const Rounding rounding(a.x.form, bits_to_float(a.maxima.data[row]));
      const auto* const from = reinterpret_cast<const float4*>(row_of(a.rows, row) + first_k + chunk * kSumOf);
      float rounded[kSumOf];
      std::uint32_t words[kSumOf / 2];
#pragma unroll
      for (int j = 0; j < kSumOf / 4; ++j) {
        const float4 x = from[j];
        const std::uint16_t halves[4] = {rounding.round(x.x), rounding.round(x.y), rounding.round(x.z),
                                         rounding.round(x.w)};
#pragma unroll
        for (int e = 0; e < 4; ++e) rounded[4 * j + e] = half_to_float(halves[e]);
        words[2 * j] = halves[0] | static_cast<std::uint32_t>(halves[1]) << 16;
        words[2 * j + 1] = halves[2] | static_cast<std::uint32_t>(halves[3]) << 16;
      }
      auto* const to = reinterpret_cast<uint4*>(memory + row * row_bytes + chunk * kSumOf * 2);
      to[0] = {words[0], words[1], words[2], words[3]};
      to[1] = {words[4], words[5], words[6], words[7]};
      if constexpr (kHasSums) {  // in the order of prepare.cu: those 8 apart, then 4, 2, 1
#pragma unroll
        for (int j = 0; j < 8; ++j) rounded[j] = rounded[j] + rounded[j + 8];
#pragma unroll
        for (int j = 0; j < 4; ++j) rounded[j] = rounded[j] + rounded[j + 4];
        rounded[0] = (rounded[0] + rounded[2]) + (rounded[1] + rounded[3]);
        all_sums[row * sum_stride + chunk] = rounded[0];
      }
    }
    __syncwarp();
    values = memory + c.x_row(lane_id() / 4) * row_bytes + lane_id() % 4 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) sums[i] = all_sums + c.x_row(lane_id() % 4 * 2 + i) * sum_stride;
  }
  __device__ void advance(int by) {
    values += by * 2;
    sums[0] += by / kSumOf;
    sums[1] += by / kSumOf;
  }
  __device__ uint2 words(int, int, int at) const { return *reinterpret_cast<const uint2*>(values + at * 2); }
  __device__ float sum(int, int i, int at) const { return sums[i][at / kSumOf]; }
};

/// What a kernel for few columns is for.
enum class FewUse : std::uint8_t {
  kAny,      // one product
  kSeveral,  // several, of all rows and without gates
  kPrepares  // one, of all rows and without a gate; rows are OwnColumns
};

/// A block computes one panel for 8 * tiles columns, each warp one of the parts: reading the weights from memory is
/// what takes the time, and all multiprocessors must take part in it.
template <LayoutId id, int tiles, FewUse use = FewUse::kAny>
struct FewColumns {
  using W = Weights<id>;
  static constexpr bool kPrepares = use == FewUse::kPrepares;
  static constexpr int kMatrices = use == FewUse::kAny ? 2 : 1;
  static_assert(use == FewUse::kAny || tiles == 1);
  static_assert(!kPrepares || (!W::kIsDense && 256 % W::kBlock == 0));
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
  /// Of the code that runs on the current device, beside what rows are prepared in.
  static int shared_bytes() { return kParts * warp_bytes(stages(has_copies_ahead())); }
  static_assert(tiles > 1 || W::kIsDense || kParts * warp_bytes(stages(true)) <= kMostMatmulBytes);

  /// Inlined, as arguments that a function is called with would be copied to memory first.
  __device__ static __forceinline__ void run(const MatmulArguments& a, const DeviceBatch& batch,
                                             unsigned column_blocks) {
    const int warp = warp_id();
    std::uint8_t* const ring = dynamic_shared() + warp * kWarpBytes;
    if (tiles == 1) column_blocks = 1;  // as its launches have no more columns than it takes
    const Share share = use == FewUse::kSeveral ? share_of(a, blockIdx.x) : Share{0, blockIdx.x / column_blocks};
    const Product product = use == FewUse::kSeveral ? product_of(a, share.product) : a.products[0];
    const std::int64_t panel = share.panel;
    const std::int64_t blocks = a.x.k / W::kBlock;
    const std::int64_t first_block = blocks * warp / kParts;  // of this warp's part
    const int count = static_cast<int>(blocks * (warp + 1) / kParts - first_block);
    // Which weights these are does not depend on what ran before, but for experts.
    const bool is_early = use != FewUse::kAny || a.kind != MatmulKind::kExperts;
    if (!is_early) wait_for_previous();
    const Columns columns =
        use == FewUse::kAny ? columns_of(a, product, batch, static_cast<int>(blockIdx.z)) : all_rows(product, batch);
    const int first = static_cast<int>(blockIdx.x % column_blocks) * kMaxColumns;
    if (first >= columns.count) {
      wait_for_previous();  // no grid may be complete before those in front of it
      return;
    }

    const int matrices = columns.up_panels == nullptr ? 1 : 2;
    float sums[kMatrices][tiles][4] = {};
#pragma unroll
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
      if (matrix >= matrices) break;
      const std::uint8_t* const weights =
          matrix == 0 ? columns.panels + panel * product.w.panel_bytes : columns.up_panels + panel * a.up.panel_bytes;
      // What this lane copies next, from the weights to the ring, and how far behind it the part ends.
      const std::uint8_t* from = weights + first_block * W::kBlockBytes + lane_id() * 16;
      int left = count * W::kBlockBytes - lane_id() * 16;
      int asked = 0;  // a place in the ring
      const auto ask = [&] {
        std::uint8_t* const to = ring + asked * W::kPieceBytes + lane_id() * 16;
        constexpr int kAtOnce = kWarp * 16;
#pragma unroll
        for (int i = 0; i < W::kPieceBytes; i += kAtOnce) {
          const bool is_in_piece = i + kAtOnce <= W::kPieceBytes || lane_id() * 16 < W::kPieceBytes - i;
          if (is_in_piece && i < left) copy_async(to + i, from + i);
        }
        from += W::kPieceBytes;
        left -= W::kPieceBytes;
        asked = asked + 1 == kStages ? 0 : asked + 1;
        commit_copies();
      };
#pragma unroll 1
      for (int i = 0; i < kStages - 1; ++i) ask();
      if (matrix == 0) {
        if (is_early) wait_for_previous();
        let_next_begin();
      }
      const std::int64_t first_k = first_block * W::kBlock;
      auto x = [&] {
        if constexpr (kPrepares) {
          std::uint8_t* const own =
              dynamic_shared() + kParts * kWarpBytes + warp * (preparing_bytes(a.x.k, columns.count) / kParts);
          return OwnColumns<id>(a, columns, own, first_k, count * W::kBlock);
        } else {
          return GlobalColumns<tiles>(a.x, columns, first, first_k);
        }
      }();
      int stage = 0;
      for (int done = 0; done < count; done += W::kPieceBlocks) {
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
        const std::uint8_t* const piece = ring + stage * W::kPieceBytes;
        stage = stage + 1 == kStages ? 0 : stage + 1;
        const auto add = [&](int block) {
          multiply<id, tiles>(sums[matrix], piece + block * W::kBlockBytes, 0, W::kBlock / kUnit, x);
          x.advance(W::kBlock);
        };
        if (tiles == 1 && done + W::kPieceBlocks <= count) {
#pragma unroll
          for (int block = 0; block < W::kPieceBlocks; ++block) add(block);
        } else {
#pragma unroll 1
          for (int block = 0; block < W::kPieceBlocks && done + block < count; ++block) add(block);
        }
      }
      wait_copies<0>();
      __syncwarp();
    }

    auto* const results = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int matrix = 0; matrix < kMatrices; ++matrix) {
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
    for (int first_result = 0; first_result < kResultFloats; first_result += kThreads) {
      const int i = first_result + static_cast<int>(threadIdx.x);
      const int column = first + i / kPanelRows;
      float value = 0.0f;
      if (i < wanted) {
        float total[2] = {};
        for (int matrix = 0; matrix < kMatrices; ++matrix) {
          for (int part = 0; part < kParts; ++part) {
            const auto* of_part = reinterpret_cast<const float*>(dynamic_shared() + part * kWarpBytes);
            const float sum = of_part[matrix * kResultFloats + i];
            total[matrix] = part == 0 ? sum : total[matrix] + sum;
          }
        }
        const std::int64_t n = panel * kPanelRows + i % kPanelRows;
        value = finish<kPrepares>(a, product, columns, n, column, total[0], total[1]);
      }
      if (tiles > 1 || use != FewUse::kAny || a.y_maxima.data == nullptr) continue;
      std::uint32_t largest = magnitude(value);
#pragma unroll
      for (int distance = kPanelRows / 2; distance > 0; distance /= 2) {
        const std::uint32_t other = __shfl_xor_sync(kAllLanes, largest, distance);
        if (other > largest) largest = other;
      }
      if (i < wanted && i % kPanelRows == 0) atomicMax(a.y_maxima.data + column, largest);
    }
  }
};

template <LayoutId id, int tiles, FewUse use>
__global__ void __launch_bounds__(kParts* kWarp, use == FewUse::kPrepares ? 4 : 0)
    few_columns(MatmulArguments a, DeviceBatch batch, unsigned column_blocks) {
  FewColumns<id, tiles, use>::run(a, batch, column_blocks);
}

}  // namespace sterna::cuda
