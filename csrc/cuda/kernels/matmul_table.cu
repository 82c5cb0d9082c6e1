/// Matmuls of layouts whose codes stand for the values of a table.
#include "cuda/kernels/matmul.cuh"

namespace sterna::cuda {

template Status launch_matmul_of<LayoutId::kTable4>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kTable4E8M0>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kTable4UE4M3>(const MatmulArguments& arguments, const Launch& launch);
template Status launch_matmul_of<LayoutId::kTable4Super>(const MatmulArguments& arguments, const Launch& launch);

}  // namespace sterna::cuda
