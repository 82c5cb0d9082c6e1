/// Layouts with super-blocks of 256.
#include "cpu/isa/level.h"
#include "cpu/kernels/matmul.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <LayoutId... ids>
void fill(KernelTable& table) {
  (fill_panel_kernels<ids>(table.panel[static_cast<int>(ids)]), ...);
}

template <LayoutId... ids>
void fill_sums(KernelTable& table) {
  (fill_sum_kernels<ids>(table.panel_sum[static_cast<int>(ids)]), ...);
}

}  // namespace

void fill_matmul_super(KernelTable& table) {
  using enum LayoutId;
  fill<kInt2Super, kInt3Super, kInt4Super, kInt5Super, kInt6Super, kTable4Super, kTernary2, kTernary1_6, kBinary,
       kUnpacked>(table);
  fill_sums<kTernary2, kTernary1_6, kBinary>(table);
}

}  // namespace sterna::cpu::STERNA_LEVEL
