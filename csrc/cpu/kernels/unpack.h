/// Unpacks panels into wide tiles, once per matmul of many rows.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "cpu/kernels/codes.h"
#include "cpu/kernels/ternary.h"
#include "cpu/wide_tile.h"

namespace sterna::cpu {
namespace {

/// sum + 128 * (sum of codes) per row, which the gemm kernels will have too much; nothing where a level multiplies
/// wide codes by signed activations.
template <LayoutId id>
inline __attribute__((always_inline)) Level::I add_excess(Level::I sum, Level::B values) {
  using V = typename Hidden<id>::V;
  if constexpr (Level::kDotTakesAnyByte) {
    return Level::dot(sum, Level::bset(128), values);
  } else if constexpr (Codes<id>::kWide) {
    return sum;
  } else {
    return V::add_words(sum, V::add_pairs(V::izero(), Level::bset(128), values));
  }
}

/// Stores the signed codes of chunks first..first + count - 1 of a unit; returns sum with their excess.
template <LayoutId id, int first, int count>
inline __attribute__((always_inline)) Level::I unpack_chunks(const std::uint8_t* unit, Level::B table, std::int8_t* out,
                                                             std::int64_t stride, Level::I sum) {
  if constexpr (count > 0) {
    const Level::B code = Codes<id>::template chunk_codes<first>(unit, table);
    constexpr int bias = Codes<id>::kWide ? 128 : Codes<id>::kBias;
    const Level::B value = Level::badd(code, Level::bset(static_cast<std::uint8_t>(-bias)));
    Level::bstore(reinterpret_cast<std::uint8_t*>(out), value);
    sum = add_excess<id>(sum, value);
    return unpack_chunks<id, first + 1, count - 1>(unit, table, out + stride, stride, sum);
  } else {
    return sum;
  }
}

/// Codes of a block of 256 at 1.6 bits; returns 128 * (sum of codes) per row.
inline Level::I unpack_quintets(const std::uint8_t* block, std::int8_t* out, std::int64_t stride) {
  using V = Level;
  V::I sum = V::izero();
  for (int q = 0; q < 13; ++q) {
    __builtin_prefetch(block + kWarmBytes + 64 * q);
    V::B t = V::bload(block + 64 * q);
    const int digits = q == 12 ? 4 : 5;
    for (int i = 0; i < digits; ++i, out += stride) {
      // A digit is the value + 1.
      const V::B digit = quintet_digit(t);
      const V::B value = V::badd(digit, V::bset(0xFF));
      V::bstore(reinterpret_cast<std::uint8_t*>(out), value);
      sum = add_excess<LayoutId::kTernary1_6>(sum, value);
      t = V::badd(V::badd(t, t), t);
    }
  }
  return sum;
}

template <LayoutId id>
inline void unpack_block_layout(const std::uint8_t* panel, std::int64_t k, const WideTile& tile, int at) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  constexpr int chunks = Codes<id>::kGroupChunks;
  const V::B table = spec.is_table ? Codes<id>::table() : V::bset(0);
  const std::int64_t stride = std::int64_t{tile.width} * 4;
  std::int8_t* codes = tile.codes + 4 * at;
  std::int64_t step = at;  // in scales and corrections
  std::int64_t unit_step = at;
  for (const std::uint8_t* end = panel + k / spec.block * spec.block_bytes(); panel != end;
       panel += spec.block_bytes()) {
    for (int u = 0; u < spec.units(); ++u) {
      const std::uint8_t* unit = panel + u * spec.unit_bytes();
      prefetch_ahead<id, 1>(panel, u);
      Codes<id>::each_group([&]<int g>() __attribute__((always_inline)) {
        const V::I sum = unpack_chunks<id, g * chunks, chunks>(unit, table, codes, stride, V::izero());
        codes += chunks * stride;
        V::istore(tile.corrections + step, V::isub(V::izero(), sum));
        V::store(tile.scales + step, Codes<id>::group_scales(panel, u, g));
        step += tile.width;
      });
      if constexpr (spec.has_min) {
        V::store(tile.mins + unit_step,
                 V::load_half(reinterpret_cast<const std::uint16_t*>(panel + spec.min_offset())));
      }
      unit_step += tile.width;
    }
  }
}

template <LayoutId id>
inline void unpack_super_layout(const std::uint8_t* panel, std::int64_t k, const WideTile& tile, int at) {
  using V = Level;
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  constexpr int chunks = Codes<id>::kGroupChunks;
  const V::B table = spec.is_table ? Codes<id>::table() : V::bset(0);
  const std::int64_t stride = std::int64_t{tile.width} * 4;
  std::int8_t* codes = tile.codes + 4 * at;
  std::int64_t block_step = at;
  std::int64_t group_step = at;
  std::int64_t pair_step = at;
  V::I uniform = V::izero();
  for (std::int64_t b = 0; b < k / spec.block; ++b, panel += spec.block_bytes()) {
    V::I correction = V::izero();
    if constexpr (id == LayoutId::kTernary1_6) {
      correction = unpack_quintets(panel, codes, stride);
      codes += 64 * stride;
    } else {
      V::I even_min = V::izero();
      for (int u = 0; u < spec.units(); ++u) {
        const std::uint8_t* unit = panel + u * spec.unit_bytes();
        prefetch_ahead<id, 1>(panel, u);
        if constexpr (spec.group_store == GroupStore::kNone) {
          correction = unpack_chunks<id, 0, 8>(unit, table, codes, stride, correction);
          codes += 8 * stride;
        } else {
          Codes<id>::each_group([&]<int g>() __attribute__((always_inline)) {
            const V::I sum = unpack_chunks<id, g * chunks, chunks>(unit, table, codes, stride, V::izero());
            codes += chunks * stride;
            const int index = u * Codes<id>::kGroups + g;
            const V::I factor = load_group<spec.group_store>(panel + spec.group_scale_offset() + index * kPanelRows);
            correction = V::iadd(correction, V::imul(sum, factor));
            V::istore(tile.factors + group_step, factor);
            group_step += tile.width;
            if constexpr (spec.has_min) {
              const V::I m = load_group_min<id>(panel, index);
              if (index % 2 == 0) {
                even_min = m;
              } else {
                V::istore(tile.min_pairs + pair_step, V::iadd(even_min, V::shift_left<16>(m)));
                pair_step += tile.width;
              }
            }
          });
        }
      }
    }
    if (tile.scales == nullptr) {
      uniform = V::iadd(uniform, correction);
      continue;
    }
    V::istore(tile.corrections + block_step, V::isub(V::izero(), correction));
    V::store(tile.scales + block_step, load_scales(panel + spec.scale_offset(), spec.scale_store));
    if constexpr (spec.has_min) {
      const V::F dmin = V::load_half(reinterpret_cast<const std::uint16_t*>(panel + spec.min_offset()));
      V::store(tile.mins + block_step, V::sub(V::zero(), dmin));
    }
    block_step += tile.width;
  }
  if (tile.scales == nullptr) V::istore(tile.corrections + at, V::isub(V::izero(), uniform));
}

template <LayoutId id>
inline void unpack_dense_layout(const std::uint8_t* panel, std::int64_t k, const WideTile& tile, int at) {
  for (std::int64_t i = 0; i < k; ++i) {
    Level::store(tile.values + i * tile.width + at, load_dense<id>(panel, i));
  }
}

/// Fills rows at .. at + 15 of a tile from a panel.
template <LayoutId id>
void unpack_panel(const std::uint8_t* panel, std::int64_t k, const WideTile& tile, int at) {
  if constexpr (is_dense(id)) {
    unpack_dense_layout<id>(panel, k, tile, at);
  } else if constexpr (layout_spec(id).scales == ScaleKind::kBlock) {
    unpack_block_layout<id>(panel, k, tile, at);
  } else {
    unpack_super_layout<id>(panel, k, tile, at);
  }
}

}  // namespace
}  // namespace sterna::cpu
