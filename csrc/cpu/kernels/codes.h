/// How kernels read a packed layout: codes, scales and group scales as vectors of 16 rows.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "quant/layout.h"

namespace sterna::cpu {
namespace {

/// Bytes ahead of the codes being multiplied that are asked for. The scales behind a block's codes break the stream
/// that the hardware would follow: without asking, K-quants come from memory at half its speed. Steps of few rows are
/// short: what lies before their first request counts, so they ask nearer. Measured.
constexpr int prefetch_distance(int rows) { return rows < 4 ? kWarmBytes : 12288; }

/// The level where a template parameter hides it from checks of branches that are not taken: levels have the words
/// that they need.
template <auto>
struct Hidden {
  using V = Level;
};

inline Level::F load_scales(const std::uint8_t* p, ScaleStore store) {
  using V = Level;
  switch (store) {
    case ScaleStore::kHalf:
      return V::load_half(reinterpret_cast<const std::uint16_t*>(p));
    case ScaleStore::kFloat:
      return V::load(reinterpret_cast<const float*>(p));
    case ScaleStore::kE8M0: {
      // 2^(e - 128): exponent e - 1, and for e of 0 and 1 the subnormals 2^-128 and 2^-127.
      const V::I e = V::iload_u8(p);
      const V::I subnormal = V::iadd(V::iset(0x00200000), V::shift_left<21>(V::imin(e, V::iset(1))));
      return V::from_bits(V::imax(V::shift_left<23>(V::isub(e, V::iset(1))), subnormal));
    }
    default:  // kUE4M3: the bits, moved to a float's exponent and mantissa, times 2^120 / 2
      return V::mul(V::from_bits(V::shift_left<20>(V::iload_u8(p))), V::set(0x1p119f));
  }
}

/// A layout's codes: as unsigned bytes with a bias.
template <LayoutId id>
struct Codes {
  static constexpr LayoutSpec kSpec = layout_spec(id);
  static constexpr bool kIq4 = id == LayoutId::kTable4 || id == LayoutId::kTable4Super;
  /// Codes above 127: biased by 128, and summed by dot_wide.
  static constexpr bool kWide = kSpec.low_bits == 8 || kIq4;
  static constexpr int kBias = kWide ? Level::kWideBias : kSpec.is_table ? 12 : kSpec.bias;
  /// Scales (float or integer) within a unit, and the chunks that share one.
  static constexpr int kGroups = kSpec.group < kUnit ? kUnit / kSpec.group : 1;
  static constexpr int kGroupChunks = 8 / kGroups;

  static Level::B table() {
    if constexpr (kIq4) {
      alignas(16) static constexpr std::int8_t kBiased[16] = {1,    24,   45,   63,  79,  93,  106, 118,
                                                              -127, -115, -103, -90, -75, -59, -39, -15};
      return Level::table(kBiased);  // value + 128 as a byte
    } else {
      alignas(16) static constexpr std::int8_t kBiased[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                                              12, 11, 10, 9,  8,  6,  4,  0};
      return Level::table(kBiased);  // value + 12
    }
  }

  /// Bits [bits * position, ...) of a plane's byte, moved to bit `shift`.
  template <int bits, int position, int shift>
  static Level::B field(Level::B plane) {
    constexpr int from = bits * position;
    constexpr std::uint8_t mask = static_cast<std::uint8_t>(((1 << bits) - 1) << shift);
    if constexpr (from >= shift) {
      return Level::band(Level::bits_right<from - shift>(plane), Level::bset(mask));
    } else {
      return Level::band(Level::bits_left<shift - from>(plane), Level::bset(mask));
    }
  }

  /// The codes of chunk `chunk` (0..7) of a unit.
  template <int chunk>
  static Level::B chunk_codes(const std::uint8_t* unit, Level::B lookup_table) {
    using V = Level;
    constexpr int low = kSpec.low_bits;
    if constexpr (low == 8) {
      return V::bload(unit + 64 * chunk);
    } else {
      constexpr int per_byte = 8 / low;
      const V::B plane = V::bload(unit + 64 * (chunk / per_byte));
      V::B codes = field<low, chunk % per_byte, kSpec.step == 2 ? 1 : 0>(plane);
      if constexpr (kSpec.high_bits != 0) {
        constexpr int high_per_byte = 8 / kSpec.high_bits;
        const V::B high = V::bload(unit + 64 * low + 64 * (chunk / high_per_byte));
        codes = V::bor(codes, field<kSpec.high_bits, chunk % high_per_byte, low>(high));
      }
      if constexpr (kSpec.is_table) codes = V::lookup(lookup_table, codes);
      return codes;
    }
  }

  static Level::I dot(Level::I acc, Level::B w, Level::I y) {
    if constexpr (kWide) return Level::dot_wide(acc, w, y);
    return Level::dot(acc, w, y);
  }

  /// Calls fn<g>() for each group of a unit.
  template <class Fn>
  static inline __attribute__((always_inline)) void each_group(Fn fn) {
    static_assert(kGroups <= 2);
    fn.template operator()<0>();
    if constexpr (kGroups == 2) fn.template operator()<1>();
  }

  /// The float scales of group g of unit u; block layouts.
  static Level::F group_scales(const std::uint8_t* block, int u, int g) {
    const int index = kSpec.group >= kUnit ? u * kUnit / kSpec.group : u * kGroups + g;
    return load_scales(block + kSpec.scale_offset() + index * kPanelRows * kSpec.scale_bytes(), kSpec.scale_store);
  }
};

template <GroupStore store>
inline Level::I load_group(const std::uint8_t* p) {
  if constexpr (store == GroupStore::kSigned8) return Level::iload_s8(p);
  if constexpr (store == GroupStore::kNibbles) return Level::iand(Level::iload_u8(p), Level::iset(15));
  return Level::iload_u8(p);
}

template <LayoutId id>
inline Level::I load_group_min(const std::uint8_t* block, int index) {
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  if constexpr (spec.group_store == GroupStore::kNibbles) {
    return Level::shift_right<4>(Level::iload_u8(block + spec.group_scale_offset() + index * kPanelRows));
  } else {
    return Level::iload_u8(block + spec.group_min_offset() + index * kPanelRows);
  }
}

constexpr bool is_dense(LayoutId id) { return id == LayoutId::kF32 || id == LayoutId::kF16 || id == LayoutId::kBF16; }

/// Element i of the 16 rows of a dense panel.
template <LayoutId id>
inline Level::F load_dense(const std::uint8_t* panel, std::int64_t i) {
  if constexpr (id == LayoutId::kF32) {
    return Level::load(reinterpret_cast<const float*>(panel) + i * kPanelRows);
  } else if constexpr (id == LayoutId::kF16) {
    return Level::load_half(reinterpret_cast<const std::uint16_t*>(panel) + i * kPanelRows);
  } else {
    return Level::load_bfloat16(reinterpret_cast<const std::uint16_t*>(panel) + i * kPanelRows);
  }
}

/// The largest |value| of a layout's codes; not for wide ones.
template <LayoutId id>
constexpr int largest_code() {
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  if (spec.is_table) return 12;  // twice the E2M1 values
  if (spec.low_bits == 0) return 1;
  const int most = ((1 << (spec.low_bits + spec.high_bits)) - 1) * spec.step - spec.bias;
  return most > spec.bias ? most : spec.bias;
}

/// Asks for unit u's share of a block's bytes further on, in the next panels where it must be. N: token rows that the
/// panel meets; 1 where it is unpacked.
template <LayoutId id, int N>
inline __attribute__((always_inline)) void prefetch_ahead(const std::uint8_t* block, int u) {
  constexpr LayoutSpec spec = Codes<id>::kSpec;
  constexpr int share = (spec.block_bytes() + spec.units() - 1) / spec.units();
  const std::uint8_t* from = block + prefetch_distance(N) + u * share;
#pragma GCC unroll 16
  for (int i = 0; i < share; i += 64) __builtin_prefetch(from + i);
}

}  // namespace
}  // namespace sterna::cpu
