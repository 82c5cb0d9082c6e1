/// Matmuls of many rows, where the level has kernels for them.
#include "cpu/isa/level.h"

#if STERNA_JOIN(STERNA_LEVEL_, STERNA_LEVEL) != 1
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/unpack.h"

namespace sterna::cpu::STERNA_LEVEL {
namespace {

template <LayoutId id>
void fill_layout(KernelTable& table) {
  table.unpack[static_cast<int>(id)] = unpack_panel<id>;
  fill_gemm_kernels<gemm_kind(id, false), dot_kind<id>()>(table.gemm[static_cast<int>(id)]);
}

template <LayoutId... ids>
void fill_layouts(KernelTable& table) {
  (fill_layout<ids>(table), ...);
}

}  // namespace

void fill_gemm(KernelTable& table) {
  using enum LayoutId;
  table.gemm_rows = Level::kGemmRows;
  table.gemm_panels = Level::kGemmPanels;
  fill_layouts<kF32, kF16, kBF16, kInt8, kInt4, kInt4Min, kInt5, kInt5Min, kTable4, kTable4E8M0, kTable4UE4M3, kInt1,
               kInt2, kInt2Wide, kInt2Super, kInt3Super, kInt4Super, kInt5Super, kInt6Super, kTable4Super, kTernary2,
               kTernary1_6, kBinary, kUnpacked>(table);
  fill_gemm_kernels<GemmKind::kSum, dot_kind<kTernary2>()>(table.gemm_sum);
}

}  // namespace sterna::cpu::STERNA_LEVEL

#else

namespace sterna::cpu::STERNA_LEVEL {

void fill_gemm(KernelTable&) {}

}  // namespace sterna::cpu::STERNA_LEVEL

#endif
