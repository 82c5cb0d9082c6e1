/// The instructions that the kernels use beyond C++. The kernels' tests run them on a CPU with a file of this name that
/// defines the same functions (tests/cuda_emulation), so nothing else may name PTX, built-in half types or launches.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace sterna::cuda {

/// Shared memory of the block beyond the kernel's own arrays, aligned to 16 bytes.
__device__ inline std::uint8_t* dynamic_shared() {
  extern __shared__ __align__(16) std::uint8_t memory[];
  return memory;
}

// binary16 and bfloat16 numbers are bits; two of them fill a word, the first in the lower half.

__device__ inline float half_to_float(std::uint16_t h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ inline std::uint16_t float_to_half(float f) {
  std::uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
/// a * b + c, each half for itself, rounded once.
__device__ inline std::uint32_t fma_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ inline std::uint32_t sub_halves(std::uint32_t a, std::uint32_t b) {
  std::uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// (x & mask) | bits
template <std::uint32_t mask, std::uint32_t bits>
__device__ inline std::uint32_t and_or(std::uint32_t x) {
  std::uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(x), "n"(mask), "n"(bits));
  return d;
}

/// Nearest integer, ties to even.
__device__ inline std::int32_t round_to_int(float x) { return __float2int_rn(x); }

/// c += a b for a [16][16] and b [16][8], spread over a warp (PTX ISA, mma.m16n8k16): with g = lane / 4 and t = lane %
/// 4 a word of a holds (row g, columns 2t, 2t + 1), then row g + 8, then columns 8 further of both; of b (rows 2t, 2t +
/// 1, column g), then rows 8 further; c (row g, columns 2t, 2t + 1), then row g + 8. All lanes take part.
__device__ inline void mma_halves(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#endif
}
/// The same of bfloat16 numbers; from compute capability 8.0 on, before that the core refuses such weights.
__device__ inline void mma_bfloats(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ < 800
  __trap();
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

/// 16 bytes from global to shared memory, in the background; both addresses are multiples of 16. They pass by the first
/// cache and leave the second one first: weights are read once a run. Before sm_80 the thread waits for them.
__device__ inline void copy_async(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  std::uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "l"(policy)
               : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
/// The same of what other blocks read too.
__device__ inline void copy_async_kept(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
#endif
}
/// The same of 4 bytes at multiples of 4.
__device__ inline void copy_async_word(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;\n" ::"r"(to), "l"(global) : "memory");
#else
  *static_cast<std::uint32_t*>(shared) = *static_cast<const std::uint32_t*>(global);
#endif
}
/// Ends a group of copies. wait_copies<n> waits for all groups of this thread but the last n.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
template <int n>
__device__ inline void wait_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(n) : "memory");
#endif
}

/// Asks for 128 bytes of global memory to be brought to the second cache.
__device__ inline void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

/// Waits until the kernel launched before is complete and its writes can be seen. What it does not write, the weights,
/// may be read earlier.
__device__ inline void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// The next kernel may begin as soon as all blocks have come here.
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Whether copies run in the background. Code for the host does not know it: see code_architecture.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr bool kCopiesAhead = false;
#else
constexpr bool kCopiesAhead = true;
#endif

/// What the code that runs on the current device was compiled for: 900 for sm_90.
inline int code_architecture() {
  constexpr int kCompiled[] = {__CUDA_ARCH_LIST__};
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  int best = 0;
  for (const int architecture : kCompiled) {
    if (architecture <= 100 * major + 10 * minor && architecture > best) best = architecture;
  }
  return best;
}
inline bool has_copies_ahead() { return code_architecture() >= 800; }

/// Bytes of shared memory that a block may have on the current device.
inline int max_shared_bytes() {
  int device = 0, bytes = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

/// Puts a kernel into the stream; it may begin before the one in front of it ends where its code waits for that (see
/// wait_for_previous). Returns a cudaError_t, which no later call returns again.
template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void* stream,
           const Arguments&... arguments) {
  constexpr std::size_t kAlwaysGranted = 48 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared_bytes > kAlwaysGranted) {
    const cudaError_t status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) {
      cudaGetLastError();
      return status;
    }
  }
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = code_architecture() >= 900 ? 1 : 0;
  const cudaError_t status = cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
  if (status != cudaSuccess) cudaGetLastError();
  return status;
}

}  // namespace sterna::cuda
