/// Matmuls of the K-quants' layouts.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {

template Status launch_matmul_of<LayoutId::kInt2Super>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt3Super>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt4Super>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt5Super>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kInt6Super>(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
