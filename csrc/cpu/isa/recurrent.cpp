#include "cpu/kernels/recurrent.h"

#include "cpu/isa/level.h"

namespace sterna::cpu::STERNA_LEVEL {

void fill_recurrent(KernelTable& table) {
  table.short_conv = cpu::short_conv;
  table.ssm_scan = cpu::ssm_scan;
  table.delta_rule = cpu::delta_rule;
}

}  // namespace sterna::cpu::STERNA_LEVEL
