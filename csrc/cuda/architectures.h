/// Which devices the CUDA library has code for, told from what it was compiled for: asking a device takes a context on
/// it.
#pragma once

#include <string_view>

namespace sterna::cuda {

/// The first generation that the kernels are written for: 10 * major + minor of the compute capability.
constexpr int kOldestArchitecture = 75;

/// Whether `compiled`, a list as CMAKE_CUDA_ARCHITECTURES with spaces ("75-real 90a-real 120"), holds code for a device
/// of this compute capability: machine code of the same major version and no later minor one, or PTX that is no later.
/// With "a" it is for that device only, with "f" for its major version. What is no such list may hold anything: true.
bool has_code(std::string_view compiled, int major, int minor);

}  // namespace sterna::cuda
