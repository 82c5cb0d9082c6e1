/// Products of the same few rows with several matrices, whose layouts may differ, in one launch: that of queries, keys
/// and values, which many files give more bits.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {
namespace {

template <LayoutId... ids>
struct Layouts {
  __device__ static __forceinline__ void run(const MatmulArguments& a, const DeviceBatch& batch,
                                             unsigned column_blocks) {
    const LayoutId layout = product_of(a, share_of(a, blockIdx.x).product).w.layout;
    static_cast<void>(
        ((layout == ids && (FewColumns<ids, 1, FewUse::kSeveral>::run(a, batch, column_blocks), true)) || ...));
  }
  /// -1 where there is no such layout.
  static int shared_bytes(LayoutId layout) {
    int bytes = -1;
    ((bytes = layout == ids ? FewColumns<ids, 1, FewUse::kSeveral>::shared_bytes() : bytes), ...);
    return bytes;
  }
};

using AllLayouts =
    Layouts<LayoutId::kF16, LayoutId::kBF16, LayoutId::kUnpacked, LayoutId::kInt8, LayoutId::kInt4, LayoutId::kInt4Min,
            LayoutId::kInt5, LayoutId::kInt5Min, LayoutId::kTable4, LayoutId::kTable4E8M0, LayoutId::kTable4UE4M3,
            LayoutId::kTable4Super, LayoutId::kInt2Super, LayoutId::kInt3Super, LayoutId::kInt4Super,
            LayoutId::kInt5Super, LayoutId::kInt6Super, LayoutId::kInt1, LayoutId::kInt2, LayoutId::kInt2Wide,
            LayoutId::kTernary2, LayoutId::kBinary>;

__global__ void __launch_bounds__(kParts* kWarp)
    few_columns_of_several(MatmulArguments a, DeviceBatch batch, unsigned column_blocks) {
  AllLayouts::run(a, batch, column_blocks);
}

}  // namespace

Status launch_several_matmuls(const MatmulArguments& a, const Launch& launch) {
  int most = 0;
  for (std::int32_t i = 0; i < a.num_products; ++i) {
    const int bytes = AllLayouts::shared_bytes(a.products[i].w.layout);
    if (bytes < 0) return kNoKernel;
    most = bytes > most ? bytes : most;
  }
  return launch_columns<FewColumns<LayoutId::kInt8, 1>>(few_columns_of_several, a, launch, num_panels(a), most);
}

}  // namespace sterna::cuda
