/// Quantised and 2-byte weights times prepared rows, by mma with the weight rows as rows and the token rows as columns.
///
/// One result is defined alike for every kernel here, so that rows may come alone or in hundreds:
///   part    k is cut into kParts runs of whole blocks, run i from block blocks * i / kParts on
///   group   within a part, for each run of k with one scale, at most 128 long: p = its mmas one after the other, from
///           0; then sum = fma(scale, p, sum), then with minimums sum = fma(minimum, the group's sum of x, sum); 2-byte
///           weights: mma with the high parts of x, then with the low ones, straight into sum
///   result  the parts' sums one after the other; * the row's scale * factor; + bias; gate; + residual
#pragma once

#include "cuda/kernels/activations.cuh"
#include "cuda/kernels/fragments.cuh"
#include "cuda/kernels/matmul_layouts.h"
#include "cuda/kernels/rounding.cuh"

namespace sterna::cuda {

constexpr int kParts = 8;
constexpr int kColumns = 8;  // of an mma

/// What a kernel needs to know of a layout.
template <LayoutId id>
struct Weights {
  static constexpr bool kIsDense = is_dense(id);
  static constexpr int kBlock = kIsDense ? kUnit : layout_spec(id).block;
  static constexpr int kBlockBytes = kIsDense ? kUnit * kPanelRows * 2 : layout_spec(id).block_bytes();
  /// Blocks that are copied to shared memory at a time: some 1 to 4 KiB.
  static constexpr int kPieceBlocks = kBlock >= 128 ? 1 : 128 / kBlock;
  static constexpr int kPieceBytes = kPieceBlocks * kBlockBytes;
  static constexpr int kPlanes = kIsDense ? 2 : 1;  // high and low parts of x
};

/// The panel of a product that a block computes.
struct Share {
  int product;
  std::int64_t panel;
};

/// Of panels that count on from product to product.
__device__ inline Share share_of(const MatmulArguments& a, std::int64_t panel) {
  Share share = {0, panel};
#pragma unroll
  for (int i = 0; i + 1 < kMaxProducts; ++i) {
    const std::int64_t panels = (a.products[i].w.n + kPanelRows - 1) / kPanelRows;
    if (i + 1 >= a.num_products || share.panel < panels) break;
    share.product = i + 1;
    share.panel -= panels;
  }
  return share;
}

/// By comparisons: arguments that are indexed at run time would be copied to memory first.
__device__ inline Product product_of(const MatmulArguments& a, int index) {
  Product product = a.products[0];
#pragma unroll
  for (int i = 1; i < kMaxProducts; ++i) {
    if (index == i) product = a.products[i];
  }
  return product;
}

/// Where the columns of one group of a matmul come from and go to.
struct Columns {
  const std::uint8_t* panels;  // of the matrix
  const std::uint8_t* up_panels;
  const float *bias, *up_bias;
  std::int64_t first_row, row_step;  // of the prepared rows
  std::int64_t first_y, y_offset;
  std::int32_t count;

  /// The prepared row of a column; of one beyond the last, that of the last.
  __device__ std::int64_t x_row(int column) const {
    return first_row + (column < count ? column : count - 1) * row_step;
  }
};

/// Of a product that meets all rows, without a gate.
__device__ inline Columns all_rows(const Product& product, const DeviceBatch& batch) {
  return {product.w.panels, nullptr, product.bias, nullptr, 0, 1, 0, 0, num_rows(batch, product.y.outputs)};
}

__device__ inline Columns columns_of(const MatmulArguments& a, const Product& product, const DeviceBatch& batch,
                                     int group) {
  Columns c = {product.w.panels, a.up.panels, product.bias, a.up_bias, 0, 1, 0, 0, 0};
  std::int64_t matrix = 0;
  if (a.kind == MatmulKind::kExperts) {
    if (group >= a.pairs.groups[0]) return c;
    const std::int32_t* found = a.pairs.groups + 1 + 3 * group;
    matrix = found[0];
    c.first_row = c.first_y = found[1];
    c.count = found[2];
    if (c.bias != nullptr) c.bias += matrix * product.w.n;
    if (c.up_bias != nullptr) c.up_bias += matrix * product.w.n;
  } else {
    c.count = num_rows(batch, product.y.outputs);
    if (a.kind == MatmulKind::kHeads) {
      matrix = group;
      c.first_row = group;
      c.row_step = a.heads;
      c.y_offset = group * product.w.n;
    }
  }
  c.panels += matrix * product.w.matrix_bytes;
  if (c.up_panels != nullptr) c.up_panels += matrix * a.up.matrix_bytes;
  return c;
}

/// The runs of blocks between kParts cuts, in pieces of at most kPieceBlocks.
template <LayoutId id>
struct Walk {
  std::int64_t blocks;
  int part, last_part;  // excluded
  std::int64_t block, end;

  __device__ Walk(std::int64_t blocks, int first_part, int last_part)
      : blocks(blocks),
        part(first_part),
        last_part(last_part),
        block(blocks * first_part / kParts),
        end(cut(first_part)) {}
  __device__ std::int64_t cut(int of_part) const { return blocks * (of_part + 1) / kParts; }
  __device__ bool done() const { return part >= last_part; }
  /// Blocks of this piece; 0 in a part that has none.
  __device__ int count() const {
    const std::int64_t left = end - block;
    return static_cast<int>(left < Weights<id>::kPieceBlocks ? left : Weights<id>::kPieceBlocks);
  }
  __device__ bool ends_part() const { return block + Weights<id>::kPieceBlocks >= end; }
  __device__ void next() {
    if (ends_part()) {
      ++part;
      block = end;
      end = cut(part);
    } else {
      block += Weights<id>::kPieceBlocks;
    }
  }
};

/// Asks for a piece of a panel: a warp shares the work.
template <LayoutId id>
__device__ inline void copy_panel(std::uint8_t* to, const std::uint8_t* panel, const Walk<id>& walk) {
  const std::uint8_t* const from = panel + walk.block * Weights<id>::kBlockBytes + lane_id() * 16;
  std::uint8_t* const target = to + lane_id() * 16;
  const int bytes = walk.count() * Weights<id>::kBlockBytes - lane_id() * 16;
#pragma unroll
  for (int i = 0; i < Weights<id>::kPieceBytes; i += kWarp * 16) {
    if (i < bytes) copy_async(target + i, from + i);
  }
}

/// sums += units first .. last - 1 of a block times the columns of x beside it; x.words(tile, plane, k) are the 4
/// values that this lane's column has from k (within the block) + 4 (lane % 4) on, and x.sum(tile, i, k) is the sum of
/// 16 of column 2 (lane % 4) + i.
template <LayoutId id, int tiles, class Columns>
__device__ inline void multiply(float (&sums)[tiles][4], const std::uint8_t* block, int first, int last,
                                const Columns& x) {
  const int lane = lane_id();
  if constexpr (Weights<id>::kIsDense) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const uint4 words = reinterpret_cast<const uint4*>(block)[lane * 2 + step];
      const std::uint32_t a[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
      for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
        for (int plane = 0; plane < 2; ++plane) {
          const uint2 pair = x.words(tile, plane, 16 * step);
          const std::uint32_t b[2] = {pair.x, pair.y};
          if constexpr (id == LayoutId::kBF16) {
            mma_bfloats(sums[tile], a, b);
          } else {
            mma_halves(sums[tile], a, b);
          }
        }
      }
    }
  } else {
    using C = Codes<id>;
    constexpr int kStored = C::kSpec.group;
    constexpr int kGroup = kStored < 128 ? kStored : 128;
    float p[tiles][4];
#pragma unroll(tiles == 1 ? 8 : 1)
    for (int unit = first; unit < last; ++unit) {
      std::uint32_t a[2][4];
      C::load(block + unit * C::kUnitBytes, lane, a);
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        const int k = unit * kUnit + 16 * step;
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
          if (k % kGroup == 0) p[tile][0] = p[tile][1] = p[tile][2] = p[tile][3] = 0.0f;
          const uint2 pair = x.words(tile, 0, k);
          const std::uint32_t b[2] = {pair.x, pair.y};
          mma_halves(p[tile], a[step], b);
        }
        if ((k + 16) % kGroup != 0) continue;
        const int group = k / kStored;
        const float scale[2] = {C::scale(block, group, lane / 4), C::scale(block, group, lane / 4 + 8)};
#pragma unroll
        for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[tile][i] = fmaf(scale[i / 2], p[tile][i], sums[tile][i]);
        }
        if constexpr (C::kHasMin) {
          const float minimum[2] = {C::minimum(block, group, lane / 4), C::minimum(block, group, lane / 4 + 8)};
#pragma unroll
          for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const int from = k + 16 - kGroup;
              float total = x.sum(tile, i, from);
              for (int at = from + 16; at <= k; at += 16) total = total + x.sum(tile, i, at);
              sums[tile][i] = fmaf(minimum[0], total, sums[tile][i]);
              sums[tile][i + 2] = fmaf(minimum[1], total, sums[tile][i + 2]);
            }
          }
        }
      }
    }
  }
}

/// The float sums of x for the two columns of each tile that a lane has results of; a column beyond the last has those
/// of the last.
template <int tiles>
struct ColumnSums {
  const float* base;
  std::int32_t offsets[tiles][2];

  __device__ ColumnSums(const PreparedRows& x, const Columns& columns, int first)
      : base(reinterpret_cast<const float*>(x.base + x.sum_offset())) {
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t row = columns.x_row(first + tile * kColumns + lane_id() % 4 * 2 + i);
        offsets[tile][i] = static_cast<std::int32_t>(row * x.sum_stride());
      }
    }
  }
  /// From `at` on behind k; k is a multiple of 16, and `at` is known when this is compiled, so that it costs no
  /// arithmetic.
  __device__ float at(int tile, int i, std::int64_t k, int at) const {
    return (base + (offsets[tile][i] + (k >> 4)))[at / 16];
  }
};

/// One result on its way out; 0 if there is no such result. `sum` and `up_sum` are those of all parts. With `prepares`
/// the matmul has prepared its rows itself.
template <bool prepares = false>
__device__ inline float finish(const MatmulArguments& a, const Product& product, const Columns& columns, std::int64_t n,
                               int column, float sum, float up_sum) {
  if (n >= product.w.n || column >= columns.count) return 0.0f;
  float scale;
  if constexpr (prepares) {
    scale = Rounding(a.x.form, bits_to_float(a.maxima.data[column])).scale;
  } else if (a.x.base == nullptr) {  // floats as they are
    scale = 1.0f;
  } else {
    scale = reinterpret_cast<const float*>(a.x.base + a.x.scale_offset())[columns.x_row(column)];
  }
  float value = sum * (scale * product.w.factor);
  if (columns.bias != nullptr) value = value + columns.bias[n];
  if (columns.up_panels != nullptr) {
    float up = up_sum * (scale * a.up.factor);
    if (columns.up_bias != nullptr) up = up + columns.up_bias[n];
    value = gate(a.glu, value, up);
  }
  const std::int64_t row = columns.first_y + column;
  if (product.residual.data != nullptr) value = value + row_of(product.residual, row)[n];
  row_of(product.y, row)[columns.y_offset + n] = value;
  return value;
}

/// Groups that a launch for so many rows must be prepared for.
inline unsigned max_groups(const MatmulArguments& a, std::int64_t rows) {
  std::int64_t groups = 1;
  if (a.kind == MatmulKind::kHeads) groups = a.heads;
  if (a.kind == MatmulKind::kExperts) {
    const std::int64_t pairs = rows * a.pairs.used;
    groups = pairs < a.pairs.max_groups() ? pairs : a.pairs.max_groups();
  }
  return static_cast<unsigned>(groups);
}

inline unsigned blocks_for(std::int64_t count, std::int64_t size) {
  return static_cast<unsigned>((count + size - 1) / size);
}

/// Panels of all products.
inline unsigned num_panels(const MatmulArguments& a) {
  unsigned panels = 0;
  for (std::int32_t i = 0; i < a.num_products; ++i) panels += blocks_for(a.products[i].w.n, kPanelRows);
  return panels;
}

}  // namespace sterna::cuda
