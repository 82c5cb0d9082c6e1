/// Layouts with super-blocks of 256.
#include "cpu/isa/level.h"
#include "cpu/kernels/matmul.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <LayoutId... ids>
void fill(KernelTable& table) {
  (fill_panel_kernels<ids>(table.panel[static_cast<int>(ids)]), ...);
}

}  // namespace

void fill_matmul_super(KernelTable& table) {
  using enum LayoutId;
  fill<kInt2Super, kInt3Super, kInt4Super, kInt5Super, kInt6Super, kTable4Super, kTernary2, kTernary1_6, kUnpacked>(
      table);
  fill_sum_kernels<kTernary2>(table.panel_sum[0]);
  fill_sum_kernels<kTernary1_6>(table.panel_sum[1]);
}

}  // namespace sterna::cpu::STERNA_LEVEL
