#include "cpu/kernels/attention.h"

#include "cpu/isa/level.h"

namespace sterna::cpu::STERNA_LEVEL {

void fill_attention(KernelTable& table) {
  table.attend_f16 = attend<HalfCache>;
  table.attend_f32 = attend<FloatCache>;
}

}  // namespace sterna::cpu::STERNA_LEVEL
