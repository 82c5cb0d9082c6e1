/// Float weights times rows.
#include "cuda/kernels/matmul_columns.cuh"

namespace sterna::cuda {
namespace {

constexpr int kFloatParts = 16;  // of k: the warps of a block
constexpr int kHalf = kUnit / 2;

/// The numbers of a unit that a lane has: of one row of the panel, at 16 neighbouring k.
struct FloatUnit {
  float values[kHalf];

  __device__ void load(const float* first) {
#pragma unroll
    for (int j = 0; j < kHalf; ++j) values[j] = first[j * kPanelRows];
  }
};

/// A block computes one panel for some columns. Part i are the units from units * i / 16 on; lanes 0 to 15 take the
/// first half of each for one row each, the others the second half, by fma, one k after the other. Then first half +
/// second half, then the parts one after the other. A matrix of few rows, as of a router, has few blocks: so each warp
/// asks for all that it will read before it waits for the rows, and one row has the next 16 loads on their way while it
/// computes.
template <int columns>
struct FloatColumns {
  static constexpr int kThreads = kFloatParts * kWarp;
  float results[2][kFloatParts][columns][kPanelRows];

  __device__ static void ask_for(const std::uint8_t* from, std::int64_t units) {
    constexpr int kLine = 128;
    const std::int64_t bytes = units * (kUnit * kPanelRows * 4);
#pragma unroll 4
    for (std::int64_t i = lane_id() * kLine; i < bytes; i += kWarp * kLine) prefetch(from + i);
  }

  __device__ void run(const MatmulArguments& a, const DeviceBatch& batch) {
    const Share share = share_of(a, blockIdx.x);
    const Product product = product_of(a, share.product);
    const int warp = warp_id();
    const int row = lane_id() % kPanelRows;
    const int half = lane_id() / kPanelRows;
    const std::int64_t units = a.x.k / kUnit;
    const std::int64_t begin = units * warp / kFloatParts, end = units * (warp + 1) / kFloatParts;
    const std::int64_t skipped = begin * (kUnit * kPanelRows * 4);
    if (a.kind == MatmulKind::kPlain && blockIdx.y == 0) {
      ask_for(product.w.panels + share.panel * product.w.panel_bytes + skipped, end - begin);
      if (a.up.panels != nullptr) ask_for(a.up.panels + share.panel * a.up.panel_bytes + skipped, end - begin);
    }
    wait_for_previous();
    let_next_begin();
    const Columns group = columns_of(a, product, batch, static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(blockIdx.y) * columns;
    if (first >= group.count) return;
    const bool is_prepared = a.x.base != nullptr;
    const std::int64_t stride = is_prepared ? a.x.k : a.rows.stride;
    const float* const x = (is_prepared ? reinterpret_cast<const float*>(a.x.base) : a.rows.data) +
                           group.x_row(first) * stride + half * kHalf;
    int later[columns];  // floats from the first column's row to the others'
#pragma unroll
    for (int column = 0; column < columns; ++column) {
      later[column] = static_cast<int>((group.x_row(first + column) - group.x_row(first)) * stride);
    }
#pragma unroll 1
    for (int matrix = 0; matrix < (group.up_panels != nullptr ? 2 : 1); ++matrix) {
      const std::uint8_t* const panel = matrix == 0 ? group.panels + share.panel * product.w.panel_bytes
                                                    : group.up_panels + share.panel * a.up.panel_bytes;
      multiply(reinterpret_cast<const float*>(panel) + half * kHalf * kPanelRows + row, x, later, begin, end, matrix);
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < columns * kPanelRows; i += kThreads) {
      const int column = i / kPanelRows;
      const std::int64_t n = share.panel * kPanelRows + i % kPanelRows;
      const float up = group.up_panels != nullptr ? total(1, column, i % kPanelRows) : 0.0f;
      finish(a, product, group, n, first + column, total(0, column, i % kPanelRows), up);
    }
  }

  /// Units begin .. end - 1 of a matrix, whose row and half of this lane is at w.
  __device__ void multiply(const float* w, const float* x, const int (&later)[columns], std::int64_t begin,
                           std::int64_t end, int matrix) {
    constexpr int kStep = kUnit * kPanelRows;
    constexpr bool kAhead = columns == 1;  // else there is enough to do meanwhile
    float sums[columns] = {};
    FloatUnit next;
    if (kAhead && begin < end) next.load(w + begin * kStep);
#pragma unroll 1
    for (std::int64_t unit = begin; unit < end; ++unit) {
      FloatUnit now;
      if constexpr (kAhead) {
        now = next;
        if (unit + 1 < end) next.load(w + (unit + 1) * kStep);
      } else {
        now.load(w + unit * kStep);
      }
#pragma unroll
      for (int column = 0; column < columns; ++column) {
        const auto* const from = reinterpret_cast<const float4*>(x + later[column] + unit * kUnit);
#pragma unroll
        for (int j = 0; j < kHalf; j += 4) {
          const float4 four = from[j / 4];
          sums[column] = fmaf(now.values[j], four.x, sums[column]);
          sums[column] = fmaf(now.values[j + 1], four.y, sums[column]);
          sums[column] = fmaf(now.values[j + 2], four.z, sums[column]);
          sums[column] = fmaf(now.values[j + 3], four.w, sums[column]);
        }
      }
    }
#pragma unroll
    for (int column = 0; column < columns; ++column) {
      const float other = __shfl_xor_sync(kAllLanes, sums[column], kPanelRows);
      if (lane_id() < kPanelRows) results[matrix][warp_id()][column][lane_id()] = sums[column] + other;
    }
  }

  __device__ float total(int matrix, int column, int row) const {
    float sum = results[matrix][0][column][row];
#pragma unroll
    for (int part = 1; part < kFloatParts; ++part) sum = sum + results[matrix][part][column][row];
    return sum;
  }
};

template <int columns>
__global__ void __launch_bounds__(FloatColumns<columns>::kThreads, 1)
    float_columns(MatmulArguments a, DeviceBatch batch) {
  __shared__ FloatColumns<columns> block;
  block.run(a, batch);
}

template <int columns>
Status launch_float_columns(const MatmulArguments& a, const Launch& launch, std::int32_t rows) {
  const dim3 grid(num_panels(a), blocks_for(rows, columns), max_groups(a, rows));
  return cuda::launch(float_columns<columns>, grid, FloatColumns<columns>::kThreads, 0, launch.stream, a,
                      *launch.batch);
}

}  // namespace

Status launch_float_matmul(const MatmulArguments& a, const Launch& launch) {
  const std::int32_t rows = max_rows(launch, a.products[0].y.outputs);
  return rows == 1 && a.kind == MatmulKind::kPlain ? launch_float_columns<1>(a, launch, rows)
                                                   : launch_float_columns<kColumns>(a, launch, rows);
}

}  // namespace sterna::cuda
