/// Matmul kernels by layout; files matmul_*.cu instantiate them, so that they compile side by side.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device_table.h"

namespace sterna::cuda {

/// Of a quantised or 2-byte layout of the device.
template <LayoutId id>
Status launch_matmul_of(const MatmulArguments& arguments, const Launch& launch);

Status launch_float_matmul(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
