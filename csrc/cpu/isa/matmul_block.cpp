/// Dense layouts, and those with a float scale per group.
#include "cpu/isa/level.h"
#include "cpu/kernels/matmul.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <LayoutId... ids>
void fill(KernelTable& table) {
  (fill_panel_kernels<ids>(table.panel[static_cast<int>(ids)]), ...);
}

}  // namespace

void fill_matmul_block(KernelTable& table) {
  using enum LayoutId;
  fill<kF32, kF16, kBF16, kInt8, kInt4, kInt4Min, kInt5, kInt5Min, kTable4, kTable4E8M0, kTable4UE4M3, kInt1, kInt2,
       kInt2Wide>(table);
}

}  // namespace sterna::cpu::STERNA_LEVEL
