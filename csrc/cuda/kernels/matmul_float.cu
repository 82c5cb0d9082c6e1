/// Float weights times rows.
#include "cuda/kernels/matmul_columns.cuh"

namespace sterna::cuda {
namespace {

/// A block computes one panel for 8 columns, each warp one of the parts (see matmul_columns.cuh). Lanes 0 to 15 take
/// the even k of the 16 rows, the others the odd ones: sums by fma, one k after the other, then even + odd.
struct FloatColumns {
  static constexpr int kThreads = kParts * kWarp;

  __device__ static void run(const MatmulArguments& a, const DeviceBatch& batch) {
    __shared__ float results[2][kParts][kColumns][kPanelRows];
    wait_for_previous();
    let_next_begin();
    const Share share = share_of(a, blockIdx.x);
    const Product product = product_of(a, share.product);
    const Columns columns = columns_of(a, product, batch, static_cast<int>(blockIdx.z));
    const int first = static_cast<int>(blockIdx.y) * kColumns;
    if (first >= columns.count) return;
    const std::int64_t panel = share.panel;
    const int warp = warp_id();
    const int row = lane_id() % kPanelRows;
    const int odd = lane_id() / kPanelRows;
    const std::int64_t units = a.x.k / kUnit;
    const std::int64_t begin = units * warp / kParts * kUnit, end = units * (warp + 1) / kParts * kUnit;
    const float* x[kColumns];
    for (int column = 0; column < kColumns; ++column) {
      x[column] = reinterpret_cast<const float*>(a.x.base + columns.x_row(first + column) * a.x.row_bytes());
    }
#pragma unroll
    for (int matrix = 0; matrix < 2; ++matrix) {
      float sums[kColumns] = {};
      if (matrix == 0 || columns.up_panels != nullptr) {
        const auto* w = reinterpret_cast<const float*>(matrix == 0 ? columns.panels + panel * product.w.panel_bytes
                                                                   : columns.up_panels + panel * a.up.panel_bytes);
        for (std::int64_t k = begin + odd; k < end; k += 2) {
          const float weight = w[k * kPanelRows + row];
#pragma unroll
          for (int column = 0; column < kColumns; ++column) sums[column] = fmaf(weight, x[column][k], sums[column]);
        }
      }
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
        const float other = __shfl_xor_sync(kAllLanes, sums[column], kPanelRows);
        if (odd == 0) results[matrix][warp][column][row] = sums[column] + other;
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kColumns * kPanelRows; i += kThreads) {
      const int column = i / kPanelRows;
      float total[2];
      for (int matrix = 0; matrix < 2; ++matrix) {
        total[matrix] = results[matrix][0][column][i % kPanelRows];
        for (int part = 1; part < kParts; ++part)
          total[matrix] = total[matrix] + results[matrix][part][column][i % kPanelRows];
      }
      finish(a, product, columns, panel * kPanelRows + i % kPanelRows, first + column, total[0], total[1]);
    }
  }
};

__global__ void __launch_bounds__(FloatColumns::kThreads) float_columns(MatmulArguments a, DeviceBatch batch) {
  FloatColumns::run(a, batch);
}

}  // namespace

Status launch_float_matmul(const MatmulArguments& a, const Launch& launch) {
  const std::int32_t columns = max_rows(launch, a.products[0].y.outputs);
  const dim3 grid(num_panels(a), blocks_for(columns, kColumns), max_groups(a, columns));
  return cuda::launch(float_columns, grid, FloatColumns::kThreads, 0, launch.stream, a, *launch.batch);
}

}  // namespace sterna::cuda
