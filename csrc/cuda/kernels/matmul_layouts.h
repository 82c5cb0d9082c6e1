/// Matmul kernels by layout; files matmul_*.cu instantiate them, so that they compile side by side.
#pragma once

#include "cuda/arguments.h"
#include "cuda/device_table.h"

namespace sterna::cuda {

/// Of a quantised or 2-byte layout of the device.
template <LayoutId id>
Status launch_matmul_of(const MatmulArguments& arguments, const Launch& launch);

/// Several products, of any layouts but floats, for at most so many rows.
Status launch_several_matmuls(const MatmulArguments& arguments, const Launch& launch);
constexpr std::int32_t kMostRowsOfSeveral = 8;

/// Also several products, for any number of rows.
Status launch_float_matmul(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
