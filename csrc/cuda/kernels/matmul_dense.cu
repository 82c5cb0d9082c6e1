/// Matmuls of 2-byte weights, and of formats that the core unpacks to bytes.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {

template Status launch_matmul_of<LayoutId::kF16>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kBF16>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kUnpacked>(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
