/// What a GPU can do at most, as JSON: bytes per second of a copy and of reads, and multiply-accumulates per second of
/// mma instructions on registers. bench_cuda.py compiles and runs it.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kVectors = std::int64_t{1} << 27;  // of 16 bytes: 2 GiB
constexpr int kRepetitions = 10;
constexpr int kSums = 8;  // independent sums of a warp
constexpr int kSteps = 4096;

void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(status));
  std::exit(1);
}

__global__ void copy(const uint4* from, uint4* to) {
  const std::int64_t all = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < kVectors; i += all) to[i] = from[i];
}

__global__ void read(const uint4* from, std::uint32_t* never) {
  const std::int64_t all = std::int64_t{gridDim.x} * kThreads;
  std::uint32_t sum = 0;
#pragma unroll 8
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < kVectors; i += all) {
    const uint4 v = from[i];
    sum += v.x ^ v.y ^ v.z ^ v.w;
  }
  if (sum == 0x12345679u) *never = sum;
}

/// 16 x 8 x 16 halves into floats.
struct Halves {
  using Sum = float;
  static constexpr double kMacs = 16 * 8 * 16;

  __device__ static void add(Sum (&sum)[4], std::uint32_t a, std::uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b));
#else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, {%0,%1,%2,%3};"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a), "r"(b));
#endif
  }
};

/// 16 x 8 x 32 bytes into 32-bit integers.
struct Bytes {
  using Sum = int;
  static constexpr double kMacs = 16 * 8 * 32;

  __device__ static void add(Sum (&sum)[4], std::uint32_t a, std::uint32_t b) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
                 : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
                 : "r"(a), "r"(b));
#else
    asm volatile(
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%4}, {%5}, {%0,%1};"
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%2,%3}, {%4}, {%5}, {%2,%3};"
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%4}, {%5}, {%0,%1};"
        "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%2,%3}, {%4}, {%5}, {%2,%3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a), "r"(b));
#endif
  }
};

template <class Mma>
__global__ void multiply(typename Mma::Sum* never) {
  typename Mma::Sum sums[kSums][4] = {};
  const std::uint32_t a = threadIdx.x, b = 2 * threadIdx.x;
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) Mma::add(sums[i], a, b);
  }
  typename Mma::Sum all = 0;
  for (const auto& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  if (all == static_cast<typename Mma::Sum>(123456789)) *never = all;
}

/// Seconds of the fastest of some launches.
template <class Launch>
double fastest(Launch launch) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  float best = 1e30f;
  for (int i = 0; i < kRepetitions; ++i) {
    check(cudaEventRecord(begin));
    launch();
    check(cudaGetLastError());
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    best = milliseconds < best ? milliseconds : best;
  }
  return best * 1e-3;
}

template <class Mma>
double macs_per_second(int blocks, void* never) {
  const double warps = static_cast<double>(blocks) * kThreads / 32 * kSums * kSteps;
  return warps * Mma::kMacs /
         fastest([&] { multiply<Mma><<<blocks, kThreads>>>(static_cast<typename Mma::Sum*>(never)); });
}

}  // namespace

int main() {
  cudaDeviceProp device;
  check(cudaGetDeviceProperties(&device, 0));
  const int blocks = device.multiProcessorCount * 8;
  uint4 *from = nullptr, *to = nullptr;
  check(cudaMalloc(&from, kVectors * 16));
  check(cudaMalloc(&to, kVectors * 16));
  check(cudaMemset(from, 1, kVectors * 16));
  const double bytes = 16.0 * static_cast<double>(kVectors);
  const double copied = fastest([&] { copy<<<blocks, kThreads>>>(from, to); });
  const double moved = fastest([&] { check(cudaMemcpyAsync(to, from, kVectors * 16, cudaMemcpyDeviceToDevice)); });
  const double seen = fastest([&] { read<<<blocks, kThreads>>>(from, reinterpret_cast<std::uint32_t*>(to)); });
  const double halves = macs_per_second<Halves>(blocks, to);
  const double codes = macs_per_second<Bytes>(blocks, to);
  std::printf(
      "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, "
      "\"copy_bytes_per_second\": %.4g, \"read_bytes_per_second\": %.4g, \"half_macs_per_second\": %.4g, "
      "\"int8_macs_per_second\": %.4g}\n",
      device.name, device.major, device.minor, device.multiProcessorCount,
      2.0 * bytes / (copied < moved ? copied : moved), bytes / seen, halves, codes);
  return 0;
}
