/// Sums over blocks of 256 ternary codes, for few rows: exact integers, so that each level may take its own way.
///
/// With a dot product that takes any unsigned bytes, codes need not be moved to the low bits:
///   2 bits    a byte masked to one field is the code times 1, 4, 16 or 64; four sums are shifted once at the end
///   1.6 bits  t_0 = byte, t_(i+1) = 3 t_i mod 256, digit_i = (3 t_i - t_(i+1)) / 256: the sum of digits is
///             (3 sum t_i y_i - sum t_(i+1) y_i) / 256, without a comparison
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "cpu/kernels/codes.h"

namespace sterna::cpu {
namespace {

/// total += -1 * (sum of activations): codes are stored as value + 1.
template <int N>
inline __attribute__((always_inline)) void subtract_sums(const std::int32_t* sums32, Level::I (&total)[N]) {
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    std::int32_t sum = 0;
    for (int u = 0; u < 8; ++u) sum += sums32[u * N + n];
    total[n] = Level::isub(total[n], Level::iset(sum));
  }
}

/// Four sums by the place of a code in its byte, so that no sum waits for the one before.
template <int N>
inline __attribute__((always_inline)) void masked_pairs(const std::uint8_t* block, const std::int8_t* y,
                                                        Level::I (&total)[N]) {
  using V = Level;
  V::I sum[4][N];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[j][n] = V::izero();
  }
  for (int plane = 0; plane < 16; ++plane, block += 64, y += 16 * N) {
    __builtin_prefetch(block + prefetch_distance(N));
    const V::B bytes = V::bload(block);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V::B code = V::band(bytes, V::bset(static_cast<std::uint8_t>(3 << (2 * j))));
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[j][n] = V::dot(sum[j][n], code, V::broadcast4(y + (j * N + n) * 4));
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    const V::I low = V::iadd(sum[0][n], V::shift_right_signed<2>(sum[1][n]));
    const V::I high = V::iadd(V::shift_right_signed<4>(sum[2][n]), V::shift_right_signed<6>(sum[3][n]));
    total[n] = V::iadd(total[n], V::iadd(low, high));
  }
}

/// Codes moved to the low bits.
template <int N>
inline __attribute__((always_inline)) void shifted_pairs(const std::uint8_t* block, const std::int8_t* y,
                                                         Level::I (&total)[N]) {
  using V = Level;
  for (int plane = 0; plane < 16; ++plane, block += 64, y += 16 * N) {
    __builtin_prefetch(block + prefetch_distance(N));
    V::B bytes = V::bload(block);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const V::B code = V::band(bytes, V::bset(3));
      bytes = V::bits_right<2>(bytes);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) total[n] = V::dot(total[n], code, V::broadcast4(y + (j * N + n) * 4));
    }
  }
}

/// Sums of t_i y and t_(i+1) y; `lanes` of each, so that few rows do not wait for one another.
template <int N>
inline __attribute__((always_inline)) void telescoped_quintets(const std::uint8_t* block, const std::int8_t* y,
                                                               Level::I (&total)[N]) {
  using V = Level;
  constexpr int lanes = N == 1 ? 5 : 3;
  V::I before[lanes][N];
  V::I after[lanes][N];
#pragma GCC unroll 5
  for (int lane = 0; lane < lanes; ++lane) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) before[lane][n] = after[lane][n] = V::izero();
  }
  const auto digits = [&]<int count>(V::B t) __attribute__((always_inline)) {
#pragma GCC unroll 5
    for (int i = 0; i < count; ++i, y += 4 * N) {
      const V::B next = V::badd(V::badd(t, t), t);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const V::I activation = V::broadcast4(y + 4 * n);
        before[i % lanes][n] = V::dot(before[i % lanes][n], t, activation);
        after[i % lanes][n] = V::dot(after[i % lanes][n], next, activation);
      }
      t = next;
    }
  };
  __builtin_prefetch(block + prefetch_distance(N) + 13 * 64);
  for (int q = 0; q < 12; ++q, block += 64) {
    __builtin_prefetch(block + prefetch_distance(N));
    digits.template operator()<5>(V::bload(block));
  }
  __builtin_prefetch(block + prefetch_distance(N));
  digits.template operator()<4>(V::bload(block));
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    V::I b = before[0][n];
    V::I a = after[0][n];
#pragma GCC unroll 5
    for (int lane = 1; lane < lanes; ++lane) {
      b = V::iadd(b, before[lane][n]);
      a = V::iadd(a, after[lane][n]);
    }
    const V::I tripled = V::iadd(V::iadd(b, b), b);
    total[n] = V::iadd(total[n], V::shift_right_signed<8>(V::isub(tripled, a)));
  }
}

/// Digit i of a byte is the carry of tripling it i + 1 times: 3 t / 256 is 0 up to 85, 1 up to 170, else 2.
inline Level::B quintet_digit(Level::B t) {
  using V = Level;
  const V::B one = V::bset(1);
  return V::badd(V::bmin(V::subtract_saturated(t, V::bset(85)), one),
                 V::bmin(V::subtract_saturated(t, V::bset(170)), one));
}

template <int N>
inline __attribute__((always_inline)) void compared_quintets(const std::uint8_t* block, const std::int8_t* y,
                                                             Level::I (&total)[N]) {
  using V = Level;
  __builtin_prefetch(block + prefetch_distance(N) + 13 * 64);
  for (int q = 0; q < 13; ++q) {
    __builtin_prefetch(block + prefetch_distance(N) + 64 * q);
    V::B t = V::bload(block + 64 * q);
    const int digits = q == 12 ? 4 : 5;
    for (int i = 0; i < digits; ++i, y += 4 * N) {
      const V::B digit = quintet_digit(t);
      for (int n = 0; n < N; ++n) total[n] = V::dot(total[n], digit, V::broadcast4(y + 4 * n));
      t = V::badd(V::badd(t, t), t);
    }
  }
}

/// total += the sum of value * activation over a block of 256. Many rows share the cost of a code's bits.
template <LayoutId id, int N>
inline __attribute__((always_inline)) void ternary_block(const std::uint8_t* block, const std::int8_t* y,
                                                         const std::int32_t* sums32, Level::I (&total)[N]) {
  subtract_sums<N>(sums32, total);
  if constexpr (id == LayoutId::kTernary2) {
    if constexpr (Level::kDotTakesAnyByte && N <= 4) {
      masked_pairs<N>(block, y, total);
    } else {
      shifted_pairs<N>(block, y, total);
    }
  } else if constexpr (Level::kDotTakesAnyByte && N <= 2) {
    telescoped_quintets<N>(block, y, total);
  } else {
    compared_quintets<N>(block, y, total);
  }
}

}  // namespace
}  // namespace sterna::cpu
