/// Stands in for NVIDIA's header of this name where kernels run on a CPU: the words of CUDA C++ that they use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator.h"

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after the other
#define __constant__ static
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define threadIdx (::sterna::cuda_emulation::current_thread->index)
#define blockIdx (::sterna::cuda_emulation::block_index)
#define blockDim (::sterna::cuda_emulation::block_size)
#define gridDim (::sterna::cuda_emulation::grid_size)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

inline void __syncthreads() { ::sterna::cuda_emulation::wait_for_block(); }
inline void __syncwarp(unsigned = 0xFFFFFFFFu) {
  const char nothing = 0;
  ::sterna::cuda_emulation::exchange(&nothing, 1);
}
inline void __threadfence() {}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  T result;
  const std::uint8_t* values = ::sterna::cuda_emulation::exchange(&value, sizeof(T));
  std::memcpy(&result, values + static_cast<std::size_t>(lane % 32) * sizeof(T), sizeof(T));
  return result;
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  return __shfl_sync(mask, value, ::sterna::cuda_emulation::current_thread->lane ^ distance);
}
inline unsigned __ballot_sync(unsigned, bool predicate) {
  const std::uint8_t* values = ::sterna::cuda_emulation::exchange(&predicate, 1);
  unsigned result = 0;
  for (int lane = 0; lane < 32; ++lane) result |= static_cast<unsigned>(values[lane] != 0) << lane;
  return result;
}
/// The lanes that have the same value.
template <class T>
unsigned __match_any_sync(unsigned, T value) {
  const std::uint8_t* values = ::sterna::cuda_emulation::exchange(&value, sizeof(T));
  unsigned result = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if (std::memcmp(values + lane * sizeof(T), &value, sizeof(T)) == 0) result |= 1u << lane;
  }
  return result;
}
inline int __any_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) != 0; }

template <class T>
T atomicAdd(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T atomicMax(T* address, T value) {
  const T old = *address;
  if (value > old) *address = value;
  return old;
}

/// Past the first cache, which does not see what other multiprocessors write.
template <class T>
T __ldcg(const T* address) {
  return *address;
}

inline float __uint_as_float(unsigned bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline unsigned __float_as_uint(float f) {
  unsigned bits;
  std::memcpy(&bits, &f, 4);
  return bits;
}
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float a, float b) { return a / b; }
/// Byte i of the result is the byte of b:a that digit i of the selector names; a digit of 8 and more repeats its sign.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(b) << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned digit = selector >> (4 * i) & 15u;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (digit & 7u)) & 0xFFu);
    if (digit & 8u) byte = byte & 0x80u ? 0xFFu : 0u;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
