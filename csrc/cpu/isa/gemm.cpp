/// Matmuls of many rows, where the level has them.
#include "cpu/isa/level.h"

#if STERNA_JOIN(STERNA_LEVEL_, STERNA_LEVEL) == 3
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/unpack.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <LayoutId... ids>
void fill_unpack(KernelTable& table) {
  ((table.unpack[static_cast<int>(ids)] = unpack_panel<ids>), ...);
}

template <GemmKind... kinds>
void fill(KernelTable& table) {
  (fill_gemm_kernels<kinds>(table.gemm[static_cast<int>(kinds)]), ...);
}

}  // namespace

void fill_gemm(KernelTable& table) {
  table.gemm_rows = Level::kGemmRows;
  table.gemm_panels = Level::kGemmPanels;
  {
    using enum LayoutId;
    fill_unpack<kF32, kF16, kBF16, kInt8, kInt4, kInt4Min, kInt5, kInt5Min, kTable4, kTable4E8M0, kTable4UE4M3, kInt1,
                kInt2Super, kInt3Super, kInt4Super, kInt5Super, kInt6Super, kTable4Super, kTernary2, kTernary1_6,
                kUnpacked>(table);
  }
  using enum GemmKind;
  fill<kDense, kBlock32, kBlock32Min, kBlock16, kSuper32, kSuper32Min, kSuper16, kSuper16Min, kSuperFlat, kSum>(table);
}

}  // namespace sterna::cpu::STERNA_LEVEL

#else

namespace sterna::cpu::STERNA_LEVEL {

void fill_gemm(KernelTable&) {}

}  // namespace sterna::cpu::STERNA_LEVEL

#endif
