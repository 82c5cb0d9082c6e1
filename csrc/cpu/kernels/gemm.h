/// Matmuls of many rows: P x 16 weight rows of a wide tile meet N token rows, sums and results staying in registers.
///
/// The arithmetic of an element is that of kernels/matmul.h, bit for bit: integer sums are exact however they are
/// ordered, and every float operation is the same.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "cpu/kernel_table.h"
#include "cpu/kernels/codes.h"
#include "cpu/wide_tile.h"

namespace sterna::cpu {
namespace {

constexpr int kP = Level::kGemmPanels;
constexpr int kWidth = kP * kPanelRows;

inline Level::B load_codes(const std::int8_t* p) { return Level::bload(reinterpret_cast<const std::uint8_t*>(p)); }

/// Calls fn(n, p) for each of the N x P results.
template <int N, class Fn>
inline __attribute__((always_inline)) void each(Fn fn) {
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
#pragma GCC unroll 2
    for (int p = 0; p < kP; ++p) fn(n, p);
  }
}

/// How a layout's products are added up. Levels that add four products to 32 bits at once need no more; others add
/// pairs in 16 bits, over as many chunks as fit.
enum class DotKind : std::uint8_t { kDirect, kRuns8, kRuns4, kRuns2, kWide };

constexpr int run_chunks(DotKind dot) {
  return dot == DotKind::kRuns8 ? 8 : dot == DotKind::kRuns4 ? 4 : dot == DotKind::kRuns2 ? 2 : 1;
}

/// sum = start(n, p) + codes * (activations + 128) over `chunks` chunks; codes * activations where the dot is kWide.
/// Runs ask for the start only when they have a sum to add to it: until then its register is free.
template <DotKind dot, int N, int chunks, class Start>
inline __attribute__((always_inline)) void dot_tile(const std::int8_t* codes, const std::int8_t* y,
                                                    Level::I (&sum)[N][kP], Start start) {
  using V = typename Hidden<dot>::V;
  constexpr bool in_runs = dot != DotKind::kDirect && dot != DotKind::kWide;
  if constexpr (!in_runs) {
    each<N>([&](int n, int p) __attribute__((always_inline)) { sum[n][p] = start(n, p); });
  }
  if constexpr (dot == DotKind::kDirect) {
#pragma GCC unroll 8
    for (int c = 0; c < chunks; ++c) {
      Level::B w[kP];
#pragma GCC unroll 2
      for (int p = 0; p < kP; ++p) w[p] = load_codes(codes + (c * kP + p) * 64);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Level::B activation = Level::broadcast4(y + (c * N + n) * 4);
#pragma GCC unroll 2
        for (int p = 0; p < kP; ++p) sum[n][p] = Level::dot(sum[n][p], activation, w[p]);
      }
    }
  } else if constexpr (dot == DotKind::kWide) {
#pragma GCC unroll 8
    for (int c = 0; c < chunks; ++c) {
      const Level::B w = load_codes(codes + c * 64);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        sum[n][0] = V::dot_signed(sum[n][0], w, Level::broadcast4(y + (c * N + n) * 4));
      }
    }
  } else {
    constexpr int run = run_chunks(dot) < chunks ? run_chunks(dot) : chunks;
#pragma GCC unroll 4
    for (int first = 0; first < chunks; first += run) {
      Level::I words[N];
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) words[n] = Level::izero();
#pragma GCC unroll 8
      for (int c = first; c < first + run; ++c) {
        const Level::B w = load_codes(codes + c * 64);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          words[n] = V::add_pairs(words[n], Level::broadcast4(y + (c * N + n) * 4), w);
        }
      }
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[n][0] = V::add_words(first == 0 ? start(n, 0) : sum[n][0], words[n]);
    }
  }
}

template <int N>
inline __attribute__((always_inline)) void store_results(const Level::F (&acc)[N][kP], float* out) {
  each<N>([&](int n, int p) __attribute__((always_inline)) { Level::store(out + n * kWidth + p * 16, acc[n][p]); });
}

template <GemmKind kind, DotKind dot, int N>
inline void gemm_block(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  constexpr GemmShape shape = gemm_shape(kind);
  constexpr int groups = 32 / shape.block;
  constexpr int chunks = 8 / groups;
  V::F acc[N][kP];
  each<N>([&](int n, int p) __attribute__((always_inline)) { acc[n][p] = V::zero(); });
  const std::int8_t* codes = w.codes;
  const std::int8_t* y = tile.codes;
  const float* scales = w.scales;
  const float* mins = w.mins;
  const std::int32_t* corrections = w.corrections;
  const float* row_scales = tile.scales;
  const float* row_sums = tile.scaled_sums;
  for (std::int64_t u = 0; u < k / 32; ++u, row_scales += N) {
    if constexpr (shape.has_min) {
      each<N>([&](int n, int p) __attribute__((always_inline)) {
        acc[n][p] = V::fma(V::load(mins + p * 16), V::set(row_sums[n]), acc[n][p]);
      });
      mins += kWidth;
      row_sums += N;
    }
#pragma GCC unroll 2
    for (int g = 0; g < groups; ++g) {
      V::I sum[N][kP];
      dot_tile<dot, N, chunks>(
          codes, y, sum, [&](int, int p) __attribute__((always_inline)) { return V::iload(corrections + p * 16); });
      each<N>([&](int n, int p) __attribute__((always_inline)) {
        acc[n][p] = V::fma(V::to_float(sum[n][p]), V::mul(V::load(scales + p * 16), V::set(row_scales[n])), acc[n][p]);
      });
      codes += chunks * 4 * kWidth;
      y += chunks * 4 * N;
      scales += kWidth;
      corrections += kWidth;
    }
  }
  store_results<N>(acc, out);
}

/// The exact sum of one block of 256 with integer scales, and of its minimums.
template <GemmKind kind, DotKind dot, int N>
inline void gemm_super(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  constexpr GemmShape shape = gemm_shape(kind);
  alignas(64) float acc[N * kWidth];
  for (int i = 0; i < N * kWidth; i += 16) V::store(acc + i, V::zero());
  const std::int8_t* codes = w.codes;
  const std::int8_t* y = tile.codes;
  const std::int32_t* factors = w.factors;
  const std::int32_t* min_pairs = w.min_pairs;
  const std::int32_t* row_pairs = shape.group == 16 ? tile.sums16 : tile.pairs32;
  for (std::int64_t b = 0; b < k / 256; ++b) {
    V::I total[N][kP];
    each<N>([&](int n, int p)
                __attribute__((always_inline)) { total[n][p] = V::iload(w.corrections + b * kWidth + p * 16); });
    if constexpr (shape.group == 0) {
      for (int u = 0; u < 8; ++u) {
        dot_tile<dot, N, 8>(codes, y, total, [&](int n, int p) __attribute__((always_inline)) { return total[n][p]; });
        codes += 32 * kWidth;
        y += 32 * N;
      }
    } else {
      constexpr int chunks = shape.group / 4;
      for (int g = 0; g < 256 / shape.group; ++g) {
        V::I sum[N][kP];
        dot_tile<dot, N, chunks>(codes, y, sum, [](int, int) __attribute__((always_inline)) { return V::izero(); });
        each<N>([&](int n, int p) __attribute__((always_inline)) {
          total[n][p] = V::iadd(total[n][p], V::imul(sum[n][p], V::iload(factors + p * 16)));
        });
        codes += chunks * 4 * kWidth;
        y += chunks * 4 * N;
        factors += kWidth;
      }
    }
    const float* scales = w.scales + b * kWidth;
    const float* row_scales = tile.scales + b * N;
    each<N>([&](int n, int p) __attribute__((always_inline)) {
      float* at = acc + n * kWidth + p * 16;
      const V::F scale = V::mul(V::load(scales + p * 16), V::set(row_scales[n]));
      V::store(at, V::fma(V::to_float(total[n][p]), scale, V::load(at)));
    });
    if constexpr (shape.has_min) {
      V::I minimum[N][kP];
      each<N>([&](int n, int p) __attribute__((always_inline)) { minimum[n][p] = V::izero(); });
      for (int g = 0; g < 128 / shape.group; ++g) {
        each<N>([&](int n, int p) __attribute__((always_inline)) {
          minimum[n][p] = V::dot_pairs(minimum[n][p], V::iload(min_pairs + p * 16), V::iset(row_pairs[n]));
        });
        min_pairs += kWidth;
        row_pairs += N;
      }
      const float* mins = w.mins + b * kWidth;
      each<N>([&](int n, int p) __attribute__((always_inline)) {
        float* at = acc + n * kWidth + p * 16;
        const V::F scale = V::mul(V::load(mins + p * 16), V::set(row_scales[n]));
        V::store(at, V::fma(V::to_float(minimum[n][p]), scale, V::load(at)));
      });
    }
  }
  for (int i = 0; i < N * kWidth; i += 16) V::store(out + i, V::load(acc + i));
}

template <DotKind dot, int N>
inline void gemm_sum(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  V::I total[N][kP];
  each<N>([&](int n, int p) __attribute__((always_inline)) { total[n][p] = V::iload(w.corrections + p * 16); });
  const std::int8_t* y = tile.codes;
  for (std::int64_t u = 0; u < k / 32; ++u)
    dot_tile<dot, N, 8>(w.codes + u * 32 * kWidth, y + u * 32 * N, total,
                        [&](int n, int p) __attribute__((always_inline)) { return total[n][p]; });
  each<N>([&](int n, int p)
              __attribute__((always_inline)) { V::store(out + n * kWidth + p * 16, V::to_float(total[n][p])); });
}

template <int N>
inline void gemm_dense(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  V::F acc[N][kP];
  each<N>([&](int n, int p) __attribute__((always_inline)) { acc[n][p] = V::zero(); });
  for (std::int64_t i = 0; i < k; ++i) {
    each<N>([&](int n, int p) __attribute__((always_inline)) {
      acc[n][p] = V::fma(V::load(w.values + i * kWidth + p * 16), V::set(tile.values[i * N + n]), acc[n][p]);
    });
  }
  store_results<N>(acc, out);
}

/// out[row][r], `width` results a row.
template <GemmKind kind, DotKind dot, int N>
void gemm_kernel(const WideTile& w, std::int64_t k, const ActivationTile& tile, float* out) {
  if constexpr (kind == GemmKind::kDense) {
    gemm_dense<N>(w, k, tile, out);
  } else if constexpr (kind == GemmKind::kSum) {
    gemm_sum<dot, N>(w, k, tile, out);
  } else if constexpr (gemm_shape(kind).block == 256) {
    gemm_super<kind, dot, N>(w, k, tile, out);
  } else {
    gemm_block<kind, dot, N>(w, k, tile, out);
  }
}

/// The dot of a layout on this level.
template <LayoutId id>
constexpr DotKind dot_kind() {
  if (Level::kDotTakesAnyByte || is_dense(id)) return DotKind::kDirect;
  if (Codes<id>::kWide) return DotKind::kWide;
  const int pair = 2 * 255 * largest_code<id>();
  return pair * 8 <= 32767 ? DotKind::kRuns8 : pair * 4 <= 32767 ? DotKind::kRuns4 : DotKind::kRuns2;
}

template <GemmKind kind, DotKind dot, int N = 1>
void fill_gemm_kernels(GemmKernel (&kernels)[kMaxTileRows]) {
  kernels[N - 1] = gemm_kernel<kind, dot, N>;
  if constexpr (N < Level::kGemmRows) fill_gemm_kernels<kind, dot, N + 1>(kernels);
}

}  // namespace
}  // namespace sterna::cpu
