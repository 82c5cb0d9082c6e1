/// Matmuls of layouts with a float scale for each block of 32.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {

template Status launch_matmul_of<LayoutId::kInt8>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt4>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt4Min>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt5>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt5Min>(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
