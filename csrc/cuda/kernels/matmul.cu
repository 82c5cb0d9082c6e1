/// Which kernel multiplies which layout. This file must not see the kernels' templates: it would compile them again.
#include <algorithm>

#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"
#include "cuda/kernels/matmul_layouts.h"

namespace sterna::cuda {

namespace {

/// Of one product, or of several of floats.
Status launch_by_layout(const MatmulArguments& a, const Launch& launch) {
  switch (a.products[0].w.layout) {
    case LayoutId::kF32:
      return launch_float_matmul(a, launch);
    case LayoutId::kF16:
      return launch_matmul_of<LayoutId::kF16>(a, launch);
    case LayoutId::kBF16:
      return launch_matmul_of<LayoutId::kBF16>(a, launch);
    case LayoutId::kUnpacked:
      return launch_matmul_of<LayoutId::kUnpacked>(a, launch);
    case LayoutId::kInt8:
      return launch_matmul_of<LayoutId::kInt8>(a, launch);
    case LayoutId::kInt4:
      return launch_matmul_of<LayoutId::kInt4>(a, launch);
    case LayoutId::kInt4Min:
      return launch_matmul_of<LayoutId::kInt4Min>(a, launch);
    case LayoutId::kInt5:
      return launch_matmul_of<LayoutId::kInt5>(a, launch);
    case LayoutId::kInt5Min:
      return launch_matmul_of<LayoutId::kInt5Min>(a, launch);
    case LayoutId::kTable4:
      return launch_matmul_of<LayoutId::kTable4>(a, launch);
    case LayoutId::kTable4E8M0:
      return launch_matmul_of<LayoutId::kTable4E8M0>(a, launch);
    case LayoutId::kTable4UE4M3:
      return launch_matmul_of<LayoutId::kTable4UE4M3>(a, launch);
    case LayoutId::kTable4Super:
      return launch_matmul_of<LayoutId::kTable4Super>(a, launch);
    case LayoutId::kInt2Super:
      return launch_matmul_of<LayoutId::kInt2Super>(a, launch);
    case LayoutId::kInt3Super:
      return launch_matmul_of<LayoutId::kInt3Super>(a, launch);
    case LayoutId::kInt4Super:
      return launch_matmul_of<LayoutId::kInt4Super>(a, launch);
    case LayoutId::kInt5Super:
      return launch_matmul_of<LayoutId::kInt5Super>(a, launch);
    case LayoutId::kInt6Super:
      return launch_matmul_of<LayoutId::kInt6Super>(a, launch);
    case LayoutId::kInt1:
      return launch_matmul_of<LayoutId::kInt1>(a, launch);
    case LayoutId::kInt2:
      return launch_matmul_of<LayoutId::kInt2>(a, launch);
    case LayoutId::kInt2Wide:
      return launch_matmul_of<LayoutId::kInt2Wide>(a, launch);
    case LayoutId::kTernary2:
      return launch_matmul_of<LayoutId::kTernary2>(a, launch);
    case LayoutId::kBinary:
      return launch_matmul_of<LayoutId::kBinary>(a, launch);
    default:
      return kNoKernel;
  }
}

}  // namespace

Status launch_matmul(const void* arguments, const Launch& launch) {
  MatmulArguments a = *static_cast<const MatmulArguments*>(arguments);
  const std::int32_t rows = max_rows(launch, a.products[0].y.outputs);
  if (!a.y_maxima.are_for(rows)) a.y_maxima.data = nullptr;
  if (a.num_products == 1 || a.products[0].w.layout == LayoutId::kF32) return launch_by_layout(a, launch);
  if (rows <= kMostRowsOfSeveral) return launch_several_matmuls(a, launch);
  // With more rows it is not the number of launches that takes the time.
  MatmulArguments one = a;
  one.num_products = 1;
  for (std::int32_t i = 0; i < a.num_products; ++i) {
    one.products[0] = a.products[i];
    if (const Status status = launch_by_layout(one, launch); status != 0) return status;
  }
  return 0;
}

}  // namespace sterna::cuda
