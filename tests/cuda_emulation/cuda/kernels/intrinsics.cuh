/// The functions of csrc/cuda/kernels/intrinsics.cuh for kernels that run on a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <exception>

#include "base/half.h"

namespace sterna::cuda {

inline std::uint8_t* dynamic_shared() { return cuda_emulation::shared_memory(); }

inline float half_to_float(std::uint16_t h) { return sterna::half_to_float(h); }
inline std::uint16_t float_to_half(float f) { return sterna::float_to_half(f); }

inline std::uint32_t each_half(std::uint32_t a, std::uint32_t b, std::uint32_t c,
                               double (*fn)(double, double, double)) {
  std::uint32_t result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const auto number = [shift](std::uint32_t x) {
      return static_cast<double>(half_to_float(static_cast<std::uint16_t>(x >> shift)));
    };
    const double exact = fn(number(a), number(b), number(c));
    result |= static_cast<std::uint32_t>(float_to_half(static_cast<float>(exact))) << shift;
  }
  return result;
}
inline std::uint32_t fma_halves(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return each_half(a, b, c, [](double x, double y, double z) { return x * y + z; });
}
inline std::uint32_t sub_halves(std::uint32_t a, std::uint32_t b) {
  return each_half(a, b, 0, [](double x, double y, double) { return x - y; });
}

template <std::uint32_t mask, std::uint32_t bits>
std::uint32_t and_or(std::uint32_t x) {
  return (x & mask) | bits;
}

inline std::int32_t round_to_int(float x) { return static_cast<std::int32_t>(std::nearbyint(x)); }

/// Products are exact, sums are taken in double and rounded once: what the hardware does is not documented.
template <class Convert>
void emulate_mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Convert convert) {
  struct Fragments {
    std::uint32_t a[4], b[2];
  } mine;
  for (int i = 0; i < 4; ++i) mine.a[i] = a[i];
  for (int i = 0; i < 2; ++i) mine.b[i] = b[i];
  const auto* lanes = reinterpret_cast<const Fragments*>(cuda_emulation::exchange(&mine, sizeof(mine)));
  const int group = cuda_emulation::current_thread->lane / 4;
  const int quad = cuda_emulation::current_thread->lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i >= 2 ? 8 : 0);
    const int column = 2 * quad + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2;
      const std::uint32_t x = lanes[row % 8 * 4 + t].a[(row >= 8 ? 1 : 0) + (k >= 8 ? 2 : 0)];
      const std::uint32_t y = lanes[column * 4 + t].b[k >= 8 ? 1 : 0];
      const int shift = k % 2 * 16;
      sum += static_cast<double>(convert(static_cast<std::uint16_t>(x >> shift))) *
             static_cast<double>(convert(static_cast<std::uint16_t>(y >> shift)));
    }
    c[i] = static_cast<float>(sum);
  }
}
inline void mma_halves(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulate_mma(c, a, b, half_to_float);
}
inline void mma_bfloats(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  emulate_mma(c, a, b, [](std::uint16_t x) { return __uint_as_float(static_cast<unsigned>(x) << 16); });
}

inline void copy_async_bytes(void* shared, const void* global, std::size_t bytes) {
  if ((reinterpret_cast<std::uintptr_t>(shared) | reinterpret_cast<std::uintptr_t>(global)) % bytes != 0) {
    std::terminate();  // the hardware refuses it
  }
  cuda_emulation::copy_later(shared, global, bytes);
}
inline void copy_async(void* shared, const void* global) { copy_async_bytes(shared, global, 16); }
inline void copy_async_kept(void* shared, const void* global) { copy_async_bytes(shared, global, 16); }
inline void copy_async_word(void* shared, const void* global) { copy_async_bytes(shared, global, 4); }

/// Reads a byte, so that the sanitizer sees where it is.
inline void prefetch(const void* global) { static_cast<void>(*static_cast<const volatile std::uint8_t*>(global)); }
inline void commit_copies() { cuda_emulation::end_copy_group(); }
template <int n>
void wait_copies() {
  cuda_emulation::wait_for_copies(n);
}
inline void wait_for_previous() {}
inline void let_next_begin() {}

#ifdef STERNA_EMULATE_SM_75
constexpr bool kCopiesAhead = false;
#else
constexpr bool kCopiesAhead = true;
#endif
inline int max_shared_bytes() { return cuda_emulation::max_shared_bytes; }
inline bool has_copies_ahead() { return kCopiesAhead; }

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes, void*,
           const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return 0;
  if (shared_bytes > static_cast<std::size_t>(max_shared_bytes())) return 1;
  cuda_emulation::run_grid({grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, shared_bytes,
                           [&] { kernel(Parameters(arguments)...); });
  return 0;
}

}  // namespace sterna::cuda
