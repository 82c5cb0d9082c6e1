/// The measuring loops of machine_kernels.h in the instructions of one level.
#include "cpu/machine_kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace sterna::cpu::STERNA_LEVEL {
namespace {

// Far enough to cover the latency of DRAM at the speed of one core, near enough to stay in the first-level cache with
// eight streams.
constexpr std::int64_t kPrefetchBytes = 1024;

#if defined(__AVX512VNNI__)

using Vector = __m512i;
Vector zero() { return _mm512_setzero_si512(); }
Vector load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
Vector combine(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
std::int64_t fold(Vector v) { return _mm512_reduce_add_epi64(v); }

constexpr int kAccumulators = 24;
constexpr std::int64_t kMacsPerDot = 64;
/// vpdpbusd: 64 products of an unsigned and a signed byte, four to a sum.
Vector dot(Vector sum, Vector a, Vector b) { return _mm512_dpbusd_epi32(sum, a, b); }
Vector splat(int byte) { return _mm512_set1_epi8(static_cast<char>(byte)); }
/// A value that the compiler knows nothing about, so that no product is computed once for all.
void conceal(Vector& v) { asm volatile("" : "+v"(v)); }

#elif defined(__AVX2__)

using Vector = __m256i;
Vector zero() { return _mm256_setzero_si256(); }
Vector load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
Vector combine(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
std::int64_t fold(Vector v) {
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return _mm_cvtsi128_si64(half) + _mm_extract_epi64(half, 1);
}

constexpr int kAccumulators = 8;
constexpr std::int64_t kMacsPerDot = 32;
/// vpmaddubsw, vpaddw: 32 products of an unsigned and a signed byte, two to a sum of 16 bits, the least that a matmul
/// can do (to go on to 32 bits now and then costs it more).
Vector dot(Vector sum, Vector a, Vector b) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)); }
Vector splat(int byte) { return _mm256_set1_epi8(static_cast<char>(byte)); }
void conceal(Vector& v) { asm volatile("" : "+x"(v)); }

#else

using Vector [[gnu::vector_size(16)]] = std::uint16_t;
Vector zero() { return Vector{}; }
Vector load(const std::uint8_t* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
Vector combine(Vector a, Vector b) { return a ^ b; }
std::int64_t fold(Vector v) {
  std::int64_t halves[2];
  __builtin_memcpy(halves, &v, sizeof(v));
  return halves[0] ^ halves[1];
}

constexpr int kAccumulators = 8;
constexpr std::int64_t kMacsPerDot = 8;
/// The most that a compiler makes of plain C++ on any CPU with registers of 16 bytes: products of 16 bits.
Vector dot(Vector sum, Vector a, Vector b) { return sum + a * b; }
Vector splat(int byte) { return zero() + static_cast<std::uint16_t>(byte); }
void conceal(Vector& v) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

#endif

template <bool kPrefetch>
Vector read_round(Vector sum, const std::uint8_t* p) {
  if constexpr (kPrefetch) {
    for (std::int64_t line = 0; line < kReadRound; line += 64) __builtin_prefetch(p + kPrefetchBytes + line);
  }
#pragma GCC unroll 16
  for (std::int64_t i = 0; i < kReadRound; i += static_cast<std::int64_t>(sizeof(Vector)))
    sum = combine(sum, load(p + i));
  return sum;
}

/// A parameter for each sum keeps it in a register; a compiler may leave an array in memory.
template <int kStreams, bool kPrefetch, class... Sums>
std::uint64_t read_with(const std::uint8_t* data, std::int64_t bytes, Sums... sums) {
  if constexpr (sizeof...(Sums) < kStreams) {
    return read_with<kStreams, kPrefetch>(data, bytes, sums..., zero());
  } else {
    const std::int64_t part = bytes / kStreams;
    for (std::int64_t at = 0; at < part; at += kReadRound) {
      const std::uint8_t* p = data + at;
      ((sums = read_round<kPrefetch>(sums, p), p += part), ...);
    }
    Vector all = zero();
    ((all = combine(all, sums)), ...);
    return static_cast<std::uint64_t>(fold(all));
  }
}

template <int kStreams, bool kPrefetch>
std::uint64_t read(const std::uint8_t* data, std::int64_t bytes) {
  return read_with<kStreams, kPrefetch>(data, bytes);
}

template <class... Sums>
std::int64_t multiply_with(std::int64_t rounds, Sums... sums) {
  if constexpr (sizeof...(Sums) < kAccumulators) {
    return multiply_with(rounds, sums..., zero());
  } else {
    Vector a = splat(3), b = splat(2);
    conceal(b);
    for (std::int64_t round = 0; round < rounds; ++round) ((conceal(a), sums = dot(sums, a, b), conceal(sums)), ...);
    Vector all = zero();
    ((all = combine(all, sums)), ...);
    return fold(all);
  }
}

std::int64_t multiply(std::int64_t rounds) { return multiply_with(rounds); }

}  // namespace

extern const MachineKernels machine_kernels;
const MachineKernels machine_kernels = {
    {{read<1, false>, read<1, true>},
     {read<2, false>, read<2, true>},
     {read<4, false>, read<4, true>},
     {read<8, false>, read<8, true>}},
    multiply,
    kAccumulators * kMacsPerDot,
};

}  // namespace sterna::cpu::STERNA_LEVEL
