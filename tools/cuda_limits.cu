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
__global__ void multiply_halves(float* never) {
  float sums[kSums][4] = {};
  const std::uint32_t a = threadIdx.x, b = 2 * threadIdx.x;
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#if __CUDA_ARCH__ >= 800
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
          : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
          : "r"(a), "r"(b));
#else
      asm volatile(
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, {%0,%1,%2,%3};"
          "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%4}, {%5}, {%0,%1,%2,%3};"
          : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
          : "r"(a), "r"(b));
#endif
    }
  }
  float all = 0.0f;
  for (const auto& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  if (all == 0.123f) *never = all;
}

/// 16 x 8 x 32 bytes into 32-bit integers.
__global__ void multiply_bytes(int* never) {
  int sums[kSums][4] = {};
  const std::uint32_t a = threadIdx.x, b = 2 * threadIdx.x;
  for (int step = 0; step < kSteps; ++step) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
#if __CUDA_ARCH__ >= 800
      asm volatile(
          "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%4,%4,%4}, {%5,%5}, {%0,%1,%2,%3};"
          : "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
          : "r"(a), "r"(b));
#else
      asm volatile(
          "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%4}, {%5}, {%0,%1};"
          "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%2,%3}, {%4}, {%5}, {%2,%3};"
          "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%0,%1}, {%4}, {%5}, {%0,%1};"
          "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%2,%3}, {%4}, {%5}, {%2,%3};"
          : "+r"(sums[i][0]), "+r"(sums[i][1]), "+r"(sums[i][2]), "+r"(sums[i][3])
          : "r"(a), "r"(b));
#endif
    }
  }
  int all = 0;
  for (const auto& sum : sums) all += sum[0] + sum[1] + sum[2] + sum[3];
  if (all == 123456789) *never = all;
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
  const double warps = static_cast<double>(blocks) * kThreads / 32 * kSums * kSteps;
  const double halves = fastest([&] { multiply_halves<<<blocks, kThreads>>>(reinterpret_cast<float*>(to)); });
  const double codes = fastest([&] { multiply_bytes<<<blocks, kThreads>>>(reinterpret_cast<int*>(to)); });
  std::printf(
      "{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"multiprocessors\": %d, \"copy_bytes_per_second\": "
      "%.4g, "
      "\"read_bytes_per_second\": %.4g, \"half_macs_per_second\": %.4g, \"int8_macs_per_second\": %.4g}\n",
      device.name, device.major, device.minor, device.multiProcessorCount,
      2.0 * bytes / (copied < moved ? copied : moved), bytes / seen, warps * 16 * 8 * 16 / halves,
      warps * 16 * 8 * 32 / codes);
  return 0;
}
