/// Which kernel multiplies how many rows.
#pragma once

#include "cuda/kernels/matmul_few.cuh"
#include "cuda/kernels/matmul_many.cuh"

namespace sterna::cuda {

/// Blocks of neighbouring columns come one after the other, so that the weights that they share are read from memory
/// once.
template <class Kernel>
Status launch_columns(void (*kernel)(MatmulArguments, DeviceBatch, unsigned), const MatmulArguments& a,
                      const Launch& launch, unsigned panels, std::int64_t shared_bytes) {
  const std::int32_t columns = max_rows(launch, a.products[0].y.outputs);
  const unsigned column_blocks = blocks_for(columns, Kernel::kMaxColumns);
  return cuda::launch(kernel, {panels * column_blocks, 1, max_groups(a, columns)}, Kernel::kThreads,
                      static_cast<std::size_t>(shared_bytes), launch.stream, a, *launch.batch, column_blocks);
}

/// Up to 8 columns by the first kernel, up to 64 by the second, more by the third.
template <LayoutId id>
Status launch_matmul_of(const MatmulArguments& a, const Launch& launch) {
  const std::int32_t columns = max_rows(launch, a.products[0].y.outputs);
  const unsigned panels = num_panels(a);
  if (columns <= kColumns) {
    using Few = FewColumns<id, 1>;
    if constexpr (!is_dense(id)) {
      if (a.maxima.are_for(columns)) {
        return launch_columns<Few>(few_columns<id, 1, FewUse::kPrepares>, a, launch, panels,
                                   Few::shared_bytes() + preparing_bytes(a.x.k, columns));
      }
    }
    return launch_columns<Few>(few_columns<id, 1, FewUse::kAny>, a, launch, panels, Few::shared_bytes());
  }
  using Many = ManyColumns<id>;
  if (columns <= 64 || Many::kSharedBytes > max_shared_bytes()) {
    using Few = FewColumns<id, 4>;
    return launch_columns<Few>(few_columns<id, 4, FewUse::kAny>, a, launch, panels, Few::shared_bytes());
  }
  return launch_columns<Many>(many_columns<id>, a, launch, blocks_for(panels, Many::panels(a.up.panels != nullptr)),
                              Many::kSharedBytes);
}

}  // namespace sterna::cuda
