// Apart from attention over other caches: with three of them in one file the compiler inlines less, and spills.
#include "cpu/isa/level.h"
#include "cpu/kernels/attention.h"
#include "cpu/kernels/kv_rounding.h"

namespace sterna::cpu::STERNA_LEVEL {

void fill_attention_q8_0(KernelTable& table) {
  table.to_q8_0 = cpu::to_q8_0;
  table.attend_q8_0 = attend<Q8Cache>;
}

}  // namespace sterna::cpu::STERNA_LEVEL
