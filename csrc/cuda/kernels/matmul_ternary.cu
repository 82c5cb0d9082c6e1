/// Matmuls of layouts with codes of one or two bits.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {

template Status launch_matmul_of<LayoutId::kInt1>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt2>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt2Wide>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kTernary2>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kBinary>(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
