/// Dot products of weight panels with token rows, one template for all quantised layouts.
///
/// Contract of one output element (u: codes as values, y: activation codes, d: scales), the same on every level and for
/// every number of rows:
///
///   block layouts   acc = 0; for each group of min(group, 32) k, ascending:
///                     acc = fma(min, float(sum y) * d_y, acc)                 with a minimum
///                     acc = fma(float(sum u*y), d_group * d_y, acc)
///   super layouts   acc = 0; for each block of 256 k, ascending, with exact int32 sums over its groups g:
///                     acc = fma(float(sum_g group_scale_g * sum u*y), d * d_y, acc)
///                     acc = fma(float(sum_g group_min_g * sum y), (-dmin) * d_y, acc)   with a minimum
///   ternary, one scale and one activation scale per row
///                   acc = float(sum over k of u*y), multiplied by (d * d_y) by the caller
///   (block and super layouts are multiplied by the matrix's factor by the caller, where it is not 1)
///   dense           acc = 0; acc = fma(w, x, acc) for k ascending
///
/// Integer sums are exact: at most 256 * 127 * 128 * 32 for super layouts and 127 * k for ternary.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "cpu/kernel_table.h"
#include "cpu/kernels/codes.h"
#include "cpu/kernels/ternary.h"

namespace sterna::cpu {
namespace {

/// sum[n] += codes * activations over chunks first..first + count - 1 of a unit; y points at the unit's activations.
template <LayoutId id, int N, int first, int count>
inline __attribute__((always_inline)) void dot_chunks(const std::uint8_t* unit, Level::B table, const std::int8_t* y,
                                                      Level::I (&sum)[N]) {
  if constexpr (count > 0) {
    const Level::B w = Codes<id>::template chunk_codes<first>(unit, table);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[n] = Codes<id>::dot(sum[n], w, Level::broadcast4(y + (first * N + n) * 4));
    dot_chunks<id, N, first + 1, count - 1>(unit, table, y, sum);
  }
}

/// -bias * sum, the start of an integer sum.
template <LayoutId id>
inline Level::I bias_start(std::int32_t sum) {
  return Level::iset(-Codes<id>::kBias * sum);
}

template <LayoutId id, int N>
inline void block_panel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  constexpr int chunks = Codes<id>::kGroupChunks;
  constexpr bool biased = Codes<id>::kBias != 0;
  const V::B table = spec.is_table ? Codes<id>::table() : V::bset(0);
  V::F acc[N];
  for (int n = 0; n < N; ++n) acc[n] = V::zero();
  const std::int8_t* y = tile.codes;
  const float* scales = tile.scales;
  const std::int32_t* sums32 = tile.sums32;
  const std::int32_t* sums16 = tile.sums16;
  const float* scaled_sums = tile.scaled_sums;
  for (const std::uint8_t* end = panel + k / spec.block * spec.block_bytes(); panel != end;
       panel += spec.block_bytes()) {
    for (int u = 0; u < spec.units(); ++u) {
      const std::uint8_t* unit = panel + u * spec.unit_bytes();
      prefetch_ahead<id, N>(panel, u);
      if constexpr (spec.has_min) {
        const V::F minimum = V::load_half(reinterpret_cast<const std::uint16_t*>(panel + spec.min_offset()));
        for (int n = 0; n < N; ++n) acc[n] = V::fma(minimum, V::set(scaled_sums[n]), acc[n]);
      }
      Codes<id>::each_group([&]<int g>() __attribute__((always_inline)) {
        const std::int32_t* sums = Codes<id>::kGroups == 2 ? sums16 + g * N : sums32;
        V::I sum[N];
        for (int n = 0; n < N; ++n) sum[n] = biased ? bias_start<id>(sums[n]) : V::izero();
        dot_chunks<id, N, g * chunks, chunks>(unit, table, y, sum);
        const V::F d = Codes<id>::group_scales(panel, u, g);
        for (int n = 0; n < N; ++n) acc[n] = V::fma(V::to_float(sum[n]), V::mul(d, V::set(scales[n])), acc[n]);
      });
      y += kUnit * N;
      scales += N;
      sums32 += N;
      sums16 += 2 * N;
      scaled_sums += N;
    }
  }
  for (int n = 0; n < N; ++n) V::store(out + n * kPanelRows, acc[n]);
}

/// One block of 256: total += the scaled integer sum, minimum += the sum of mins.
template <LayoutId id, int N>
inline __attribute__((always_inline)) void super_block(const std::uint8_t* block, Level::B table, const std::int8_t* y,
                                                       const std::int32_t* sums16, const std::int32_t* sums32,
                                                       Level::I (&total)[N], Level::I (&minimum)[N]) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  constexpr bool biased = Codes<id>::kBias != 0;
  constexpr int chunks = Codes<id>::kGroupChunks;
  for (int u = 0; u < spec.units(); ++u, block += spec.unit_bytes(), y += kUnit * N, sums32 += N, sums16 += 2 * N) {
    const std::uint8_t* start = block - u * spec.unit_bytes();
    prefetch_ahead<id, N>(start, u);
    Codes<id>::each_group([&]<int g>() __attribute__((always_inline)) {
      const std::int32_t* sums = Codes<id>::kGroups == 2 ? sums16 + g * N : sums32;
      V::I sum[N];
      for (int n = 0; n < N; ++n) sum[n] = biased ? bias_start<id>(sums[n]) : V::izero();
      dot_chunks<id, N, g * chunks, chunks>(block, table, y, sum);
      const int index = u * Codes<id>::kGroups + g;
      const V::I factor = load_group<spec.group_store>(start + spec.group_scale_offset() + index * kPanelRows);
      for (int n = 0; n < N; ++n) total[n] = V::iadd(total[n], V::imul(sum[n], factor));
      if constexpr (spec.has_min) {
        const V::I m = load_group_min<id>(start, index);
        for (int n = 0; n < N; ++n) minimum[n] = V::iadd(minimum[n], V::imul(m, V::iset(sums[n])));
      }
    });
  }
}

template <LayoutId id, int N>
inline __attribute__((always_inline)) void any_super_block(const std::uint8_t* block, Level::B table,
                                                           const ActivationTile& tile, std::int64_t b,
                                                           Level::I (&total)[N], Level::I (&minimum)[N]) {
  const std::int8_t* y = tile.codes + b * 256 * N;
  if constexpr (id == LayoutId::kBinary) {
    subtract_sums<N>(tile.sums32 + b * 8 * N, total);
    for (int u = 0; u < Codes<id>::kSpec.units(); ++u, y += kUnit * N) {
      prefetch_ahead<id, N>(block, u);
      // A sum for each unit: one for all of them would wait for itself.
      Level::I sum[N];
      for (int n = 0; n < N; ++n) sum[n] = Level::izero();
      dot_chunks<id, N, 0, 8>(block + u * Codes<id>::kSpec.unit_bytes(), table, y, sum);
      for (int n = 0; n < N; ++n) total[n] = Level::iadd(total[n], sum[n]);
    }
  } else if constexpr (Codes<id>::kSpec.group_store == GroupStore::kNone) {
    ternary_block<id, N>(block, y, tile.sums32 + b * 8 * N, total);
  } else {
    super_block<id, N>(block, table, y, tile.sums16 + b * 16 * N, tile.sums32 + b * 8 * N, total, minimum);
  }
}

template <LayoutId id, int N>
inline void super_panel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  const V::B table = spec.is_table ? Codes<id>::table() : V::bset(0);
  V::F acc[N];
  for (int n = 0; n < N; ++n) acc[n] = V::zero();
  for (std::int64_t b = 0; b < k / spec.block; ++b, panel += spec.block_bytes()) {
    V::I total[N];
    V::I minimum[N];
    for (int n = 0; n < N; ++n) total[n] = minimum[n] = V::izero();
    any_super_block<id, N>(panel, table, tile, b, total, minimum);
    const V::F d = load_scales(panel + spec.scale_offset(), spec.scale_store);
    const float* scales = tile.scales + b * N;
    for (int n = 0; n < N; ++n) acc[n] = V::fma(V::to_float(total[n]), V::mul(d, V::set(scales[n])), acc[n]);
    if constexpr (spec.has_min) {
      const V::F dmin = V::load_half(reinterpret_cast<const std::uint16_t*>(panel + spec.min_offset()));
      const V::F negative = V::sub(V::zero(), dmin);
      for (int n = 0; n < N; ++n) acc[n] = V::fma(V::to_float(minimum[n]), V::mul(negative, V::set(scales[n])), acc[n]);
    }
  }
  for (int n = 0; n < N; ++n) V::store(out + n * kPanelRows, acc[n]);
}

template <LayoutId id, int N>
inline void sum_panel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  V::I total[N];
  V::I unused[N];
  for (int n = 0; n < N; ++n) total[n] = unused[n] = V::izero();
  for (std::int64_t b = 0; b < k / spec.block; ++b, panel += spec.block_bytes()) {
    any_super_block<id, N>(panel, V::bset(0), tile, b, total, unused);
  }
  for (int n = 0; n < N; ++n) V::store(out + n * kPanelRows, V::to_float(total[n]));
}

template <LayoutId id, int N>
inline void dense_panel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  using V = Level;
  V::F acc[N];
  for (int n = 0; n < N; ++n) acc[n] = V::zero();
  const float* x = tile.values;
  for (std::int64_t i = 0; i < k; ++i, x += N) {
    const V::F w = load_dense<id>(panel, i);
    for (int n = 0; n < N; ++n) acc[n] = V::fma(w, V::set(x[n]), acc[n]);
  }
  for (int n = 0; n < N; ++n) V::store(out + n * kPanelRows, acc[n]);
}

/// The kernel of a layout for N rows.
template <LayoutId id, int N>
void panel_kernel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  if constexpr (is_dense(id)) {
    dense_panel<id, N>(panel, k, tile, out);
  } else if constexpr (layout_spec(id).scales == ScaleKind::kBlock) {
    block_panel<id, N>(panel, k, tile, out);
  } else {
    super_panel<id, N>(panel, k, tile, out);
  }
}

template <LayoutId id, int N>
void sum_kernel(const std::uint8_t* panel, std::int64_t k, const ActivationTile& tile, float* out) {
  sum_panel<id, N>(panel, k, tile, out);
}

template <LayoutId id, int N = 1>
void fill_panel_kernels(PanelKernel (&kernels)[kMaxTileRows]) {
  kernels[N - 1] = panel_kernel<id, N>;
  if constexpr (N < Level::kTileRows) fill_panel_kernels<id, N + 1>(kernels);
}

template <LayoutId id, int N = 1>
void fill_sum_kernels(PanelKernel (&kernels)[kMaxTileRows]) {
  kernels[N - 1] = sum_kernel<id, N>;
  if constexpr (N < Level::kTileRows) fill_sum_kernels<id, N + 1>(kernels);
}

}  // namespace
}  // namespace sterna::cpu
