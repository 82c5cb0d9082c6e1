/// Every kernel of a level against the scalar definition, on random inputs, bit for bit: `sterna doctor` runs this on
/// the user's own machine.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/kernel_table.h"

namespace sterna::cpu {

/// What one family of kernels did.
struct KernelCheck {
  std::string_view family;
  int cases = 0;
  std::string mismatch;  // the first one; empty where there is none
};

/// Holds the kernels of `level` against those of `definition`. Takes a fraction of a second.
std::vector<KernelCheck> check_kernels(const KernelTable& level, const KernelTable& definition, std::uint64_t seed);

}  // namespace sterna::cpu
