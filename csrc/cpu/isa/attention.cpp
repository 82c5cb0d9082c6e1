#include "cpu/kernels/attention.h"

#include "cpu/isa/level.h"

namespace sterna::cpu::STERNA_LEVEL {

void fill_attention(KernelTable& table) {
  table.attend_f16 = attend<std::uint16_t>;
  table.attend_f32 = attend<float>;
}

}  // namespace sterna::cpu::STERNA_LEVEL
