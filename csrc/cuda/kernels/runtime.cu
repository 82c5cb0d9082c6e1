/// The device library's table: the CUDA runtime's functions and the kernels' launchers.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>

#include "cuda/device_table.h"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

/// What the library was compiled for, where the build knows.
#ifdef STERNA_CUDA_COMPILED
constexpr const char* kCompiled = STERNA_CUDA_COMPILED;
#else
constexpr const char* kCompiled = "";
#endif

cudaStream_t stream_of(void* stream) { return static_cast<cudaStream_t>(stream); }

/// What went wrong is said once: no later call may find it again.
Status said(cudaError_t status) {
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

const char* error_text(Status status) {
  if (status == kNoKernel) return "there is no such kernel";
  if (status == cudaErrorInsufficientDriver) return "there is no NVIDIA driver, or it is too old";
  return cudaGetErrorString(static_cast<cudaError_t>(status));
}

Status count_devices(int* count) { return said(cudaGetDeviceCount(count)); }

Status describe_device(int device, DeviceInfo* info) {
  cudaDeviceProp properties;
  if (const cudaError_t status = cudaGetDeviceProperties(&properties, device); status != cudaSuccess) {
    return said(status);
  }
  std::strncpy(info->name, properties.name, sizeof(info->name) - 1);
  info->name[sizeof(info->name) - 1] = '\0';
  info->major = properties.major;
  info->minor = properties.minor;
  info->multiprocessors = properties.multiProcessorCount;
  info->block_bytes = properties.sharedMemPerBlockOptin;
  info->total_bytes = properties.totalGlobalMem;
  return 0;
}

Status use_device(int device) { return said(cudaSetDevice(device)); }

/// Code for the device is looked for as for any other kernel; nothing runs.
__global__ void any_kernel() {}
Status check_code() {
  cudaFuncAttributes attributes;
  return said(cudaFuncGetAttributes(&attributes, any_kernel));
}

Status free_bytes(std::uint64_t* bytes) {
  std::size_t free = 0, total = 0;
  const cudaError_t status = cudaMemGetInfo(&free, &total);
  *bytes = free;
  return said(status);
}

Status create_stream(void** stream) {
  return said(cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking));
}
Status destroy_stream(void* stream) { return said(cudaStreamDestroy(stream_of(stream))); }

Status synchronize(void* stream) { return said(cudaStreamSynchronize(stream_of(stream))); }

Status allocate(std::uint64_t bytes, void** memory) { return said(cudaMalloc(memory, bytes)); }
Status release(void* memory) { return said(cudaFree(memory)); }
Status allocate_host(std::uint64_t bytes, void** memory) { return said(cudaMallocHost(memory, bytes)); }
Status release_host(void* memory) { return said(cudaFreeHost(memory)); }

Status copy(void* to, const void* from, std::uint64_t bytes, void* stream) {
  return said(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(stream)));
}
Status fill_zero(void* memory, std::uint64_t bytes, void* stream) {
  return said(cudaMemsetAsync(memory, 0, bytes, stream_of(stream)));
}

/// Relaxed: the first launch of a kernel loads it, whatever that calls.
Status begin_graph(void* stream) {
  return said(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeRelaxed));
}
Status end_graph(void* stream, void** graph) {
  *graph = nullptr;
  cudaGraph_t captured = nullptr;
  if (const cudaError_t status = cudaStreamEndCapture(stream_of(stream), &captured); status != cudaSuccess) {
    return said(status);
  }
  cudaGraphExec_t made = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&made, captured, 0);
  cudaGraphDestroy(captured);
  if (status == cudaSuccess) *graph = made;
  return said(status);
}
Status launch_graph(void* graph, void* stream) {
  return said(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), stream_of(stream)));
}
Status destroy_graph(void* graph) { return said(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph))); }

DeviceTable make_table() {
  DeviceTable table = {kTableVersion, kCompiled,  error_text,  count_devices, describe_device,
                       use_device,    check_code, free_bytes,  create_stream, destroy_stream,
                       synchronize,   allocate,   release,     allocate_host, release_host,
                       copy,          fill_zero,  begin_graph, end_graph,     launch_graph,
                       destroy_graph, {}};
  std::copy_n(kLaunchers, kNumKernels, table.launchers);
  return table;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const DeviceTable* sterna_cuda_table() {
  static const DeviceTable table = make_table();
  return &table;
}

}  // namespace sterna::cuda
