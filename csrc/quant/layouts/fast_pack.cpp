/// Packing by moving bit fields, without a look at what they mean: formats with 4 bits and more, and plain numbers.
#include "quant/layouts/fast_pack.h"

#include <bit>

#include "quant/layouts/fields.h"

namespace sterna::quant {
namespace {

// One struct a format: how a block of 16 rows becomes a panel block. The byte maps are in quant/formats and in
// quant/layout.h.

/// 4 bits of blocks of 32: the fields of 16 bytes are the halves of a unit.
void move_half_units(Rows rows, int units, int unit_bytes, std::uint8_t* to) {
  move_fields<4, 16>(rows, units, to, [=](int run, int f) { return run * unit_bytes + f * 128; });
}

template <LayoutId layout, int codes_at>
struct Nibbles32 {  // Q4_0, Q4_1, IQ4_NL, Q5_0, Q5_1
  static constexpr LayoutSpec kSpec = layout_spec(layout);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_half_units(rows.at(codes_at), 1, kSpec.unit_bytes(), to);
    if constexpr (kSpec.high_bits != 0) move_bits(rows.at(codes_at - 4), to + 4 * 64);
    finite.move_halves(rows, to + kSpec.scale_offset());
    if constexpr (kSpec.has_min) finite.move_halves(rows.at(2), to + kSpec.min_offset());
  }
};

struct MXFP4 {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kTable4E8M0);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_half_units(rows.at(1), 1, kSpec.unit_bytes(), to);
    for (int i = 0; i < kSpec.unit_bytes(); i += 16) {
      // Of the two codes for zero, a layout has the first only: 8 becomes 0.
      const Words words = load(to + i);
      store(to + i, words & ((words << 1 | words << 2 | words << 3) | 0x77777777u));
    }
    for (int r = 0; r < kPanelRows; ++r) {
      const std::uint32_t exponent = *rows.row(r).first;
      to[kSpec.scale_offset() + r] = static_cast<std::uint8_t>(exponent);
      finite.overflow |= (exponent + 7) << 7;  // from 249 on, 128 times the scale is no float
    }
  }
};

struct Q8_0 {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kInt8);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    for (int r = 0; r < kPanelRows; r += 4) {
      const auto words = load_words<8>(rows.row(r).at(2));
      for (int w = 0; w < 8; ++w) store(to + w * 64 + r * 4, words[w] ^ 0x80808080u);
    }
    finite.move_halves(rows, to + kSpec.scale_offset());
  }
};

/// Scales of Q4_K and Q5_K, with the two halves before them.
void move_six_bit_scales(Rows rows, const LayoutSpec& spec, std::uint8_t* to, Finite& finite) {
  std::array<Words, 4> scales[2], mins[2];
  for (int r = 0; r < 4; ++r) {
    const auto words = load_words<4>(rows.row(4 * r));
    scales[0][r] = words[1] & 0x3F3F3F3Fu;
    mins[0][r] = words[2] & 0x3F3F3F3Fu;
    scales[1][r] = (words[3] & 0x0F0F0F0Fu) | (words[1] >> 2 & 0x30303030u);
    mins[1][r] = (words[3] >> 4 & 0x0F0F0F0Fu) | (words[2] >> 2 & 0x30303030u);
  }
  for (int i = 0; i < 2; ++i) {
    store_groups(scales[i], to + spec.group_scale_offset() + 4 * i * kPanelRows);
    store_groups(mins[i], to + spec.group_min_offset() + 4 * i * kPanelRows);
  }
  finite.move_halves(rows, to + spec.scale_offset());
  finite.move_halves(rows.at(2), to + spec.min_offset());
}

template <LayoutId layout>
struct Nibbles256 {  // Q4_K, Q5_K
  static constexpr LayoutSpec kSpec = layout_spec(layout);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    constexpr int unit_bytes = kSpec.unit_bytes();
    constexpr int high_bytes = kSpec.high_bits != 0 ? 32 : 0;
    move_fields<4, 32>(rows.at(16 + high_bytes), 4, to, [](int run, int f) { return (2 * run + f) * unit_bytes; });
    if constexpr (high_bytes != 0)
      move_fields<1, 32>(rows.at(16), 1, to + 4 * 64, [](int, int f) { return f * unit_bytes; });
    move_six_bit_scales(rows, kSpec, to, finite);
  }
};

struct Q6_K {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kInt6Super);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    constexpr int unit_bytes = kSpec.unit_bytes();
    move_fields<4, 32>(rows, 4, to, [](int run, int f) { return (run / 2 * 4 + 2 * f + run % 2) * unit_bytes; });
    move_fields<2, 32>(rows.at(128), 2, to + 4 * 64, [](int run, int f) { return (4 * run + f) * unit_bytes; });
    move_groups<16>(rows.at(192), to + kSpec.group_scale_offset());
    finite.move_halves(rows.at(208), to + kSpec.scale_offset());
  }
};

struct Q2_K {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kInt2Super);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_fields<2, 32>(rows.at(16), 2, to, [](int run, int f) { return (4 * run + f) * kSpec.unit_bytes(); });
    move_groups<16>(rows, to + kSpec.group_scale_offset());
    finite.move_halves(rows.at(80), to + kSpec.scale_offset());
    finite.move_halves(rows.at(82), to + kSpec.min_offset());
  }
};

struct Q3_K {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kInt3Super);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    constexpr int unit_bytes = kSpec.unit_bytes();
    move_fields<2, 32>(rows.at(32), 2, to, [](int run, int f) { return (4 * run + f) * unit_bytes; });
    move_fields<1, 32>(rows, 1, to + 2 * 64, [](int, int f) { return f * unit_bytes; });
    std::array<Words, 4> scales[4];
    for (int r = 0; r < 4; ++r) {
      const auto words = load_words<3>(rows.row(4 * r).at(96));
      for (int i = 0; i < 4; ++i)
        scales[i][r] = (words[i % 2] >> (i / 2 * 4) & 0x0F0F0F0Fu) | ((words[2] >> (2 * i) & 0x03030303u) << 4);
    }
    constexpr std::uint8_t kLess32 = 256 - 32;
    for (int i = 0; i < 4; ++i) store_groups(scales[i], to + kSpec.group_scale_offset() + 4 * i * kPanelRows, kLess32);
    finite.move_halves(rows.at(108), to + kSpec.scale_offset());
  }
};

struct IQ4_XS {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kTable4Super);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_half_units(rows.at(8), 8, kSpec.unit_bytes(), to);
    std::array<Words, 4> scales[2];
    for (int r = 0; r < 4; ++r) {
      const auto words = load_words<2>(rows.row(4 * r));
      for (int i = 0; i < 2; ++i) {
        // Four nibbles and four pairs of bits, each spread to a byte of its own.
        Words low = words[1] >> (16 * i) & 0xFFFFu;
        low = (low | low << 8) & 0x00FF00FFu;
        low = (low | low << 4) & 0x0F0F0F0Fu;
        Words high = words[0] >> (16 + 8 * i) & 0xFFu;
        high = (high | high << 12) & 0x000F000Fu;
        high = (high | high << 6) & 0x03030303u;
        scales[i][r] = low | high << 4;
      }
    }
    constexpr std::uint8_t kLess32 = 256 - 32;
    for (int i = 0; i < 2; ++i) store_groups(scales[i], to + kSpec.group_scale_offset() + 4 * i * kPanelRows, kLess32);
    finite.move_halves(rows, to + kSpec.scale_offset());
  }
};

bool pack_f32(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel) {
  Words overflow{};
  for (std::int64_t i = 0; i < k; i += 4) {
    for (int r = 0; r < kPanelRows; r += 4) {
      const auto words = load_words<4>(Rows{rows + 4 * i, row_bytes}.row(r));
      for (int j = 0; j < 4; ++j) {
        overflow |= (words[j] & 0x7F800000u) + 0x00800000u;
        store(panel + ((i + j) * kPanelRows + r) * 4, words[j]);
      }
    }
  }
  return ((overflow[0] | overflow[1] | overflow[2] | overflow[3]) & 0x80000000u) == 0;
}

/// F16 and BF16, by the lowest bit of the exponent.
template <std::uint32_t exponent, std::uint32_t lowest>
bool pack_halves(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel) {
  Words overflow{};
  for (std::int64_t i = 0; i < k; i += 8) {
    for (int r = 0; r < kPanelRows; r += 8) {
      // Even rows and odd rows: exchanging halves then gives eight rows side by side, of one column and of the next.
      const std::uint8_t* first = rows + 2 * i + r * row_bytes;
      auto even = load_words<4>({first, 2 * row_bytes});
      auto odd = load_words<4>({first + row_bytes, 2 * row_bytes});
      for (int j = 0; j < 4; ++j) {
        exchange(even[j], odd[j], 16, 0x0000FFFFu);
        overflow |= ((even[j] & exponent) + lowest) | ((odd[j] & exponent) + lowest);
        store(panel + ((i + 2 * j) * kPanelRows + r) * 2, even[j]);
        store(panel + ((i + 2 * j + 1) * kPanelRows + r) * 2, odd[j]);
      }
    }
  }
  return ((overflow[0] | overflow[1] | overflow[2] | overflow[3]) & 0x80008000u) == 0;
}

}  // namespace

FastPack fast_pack(const Format& format, std::int64_t k) {
  if constexpr (std::endian::native != std::endian::little) return nullptr;
  switch (format.id) {
    case FormatId::kF32:
      return k % 4 == 0 ? &pack_f32 : nullptr;
    case FormatId::kF16:
      return k % 8 == 0 ? &pack_halves<0x7C007C00u, 0x04000400u> : nullptr;
    case FormatId::kBF16:
      return k % 8 == 0 ? &pack_halves<0x7F807F80u, 0x00800080u> : nullptr;
    case FormatId::kQ4_0:
      return &pack_blocks<Nibbles32<LayoutId::kInt4, 2>, 18>;
    case FormatId::kQ4_1:
      return &pack_blocks<Nibbles32<LayoutId::kInt4Min, 4>, 20>;
    case FormatId::kQ5_0:
      return &pack_blocks<Nibbles32<LayoutId::kInt5, 6>, 22>;
    case FormatId::kQ5_1:
      return &pack_blocks<Nibbles32<LayoutId::kInt5Min, 8>, 24>;
    case FormatId::kIQ4_NL:
      return &pack_blocks<Nibbles32<LayoutId::kTable4, 2>, 18>;
    case FormatId::kMXFP4:
      return &pack_blocks<MXFP4, 17>;
    case FormatId::kQ8_0:
      return &pack_blocks<Q8_0, 34>;
    case FormatId::kQ2_K:
      return &pack_blocks<Q2_K, 84>;
    case FormatId::kQ3_K:
      return &pack_blocks<Q3_K, 110>;
    case FormatId::kQ4_K:
      return &pack_blocks<Nibbles256<LayoutId::kInt4Super>, 144>;
    case FormatId::kQ5_K:
      return &pack_blocks<Nibbles256<LayoutId::kInt5Super>, 176>;
    case FormatId::kQ6_K:
      return &pack_blocks<Q6_K, 210>;
    case FormatId::kIQ4_XS:
      return &pack_blocks<IQ4_XS, 136>;
    default:
      return fast_pack_ternary(format);
  }
}

}  // namespace sterna::quant
