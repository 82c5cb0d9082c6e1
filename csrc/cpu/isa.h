/// The instruction sets compiled into this build, which of them this CPU has, and which one is used.
#pragma once

#include <span>
#include <string_view>

#include "cpu/kernel_table.h"

namespace sterna::cpu {

/// All levels of this build, worst first.
std::span<const std::string_view> compiled_levels();
/// Whether this CPU can run the level.
bool is_supported(std::string_view level);
/// The best level that the CPU supports; $STERNA_ISA forces one. Throws DeviceError for a level that is not there.
std::string_view chosen_level();
/// The kernels of a level. Throws DeviceError when it is unknown or the CPU lacks it.
const KernelTable& kernel_table(std::string_view level);

}  // namespace sterna::cpu
