/// Packing by moving bit fields: ternary and 1-bit formats.
#include "quant/layouts/fast_pack.h"
#include "quant/layouts/fields.h"

namespace sterna::quant {
namespace {

/// Gathers whether a field of two bits is 3, which means nothing in ternary formats.
struct Codes {
  Words fourth{};

  void add(Words words) { fourth |= words & (words >> 1) & 0x55555555u; }
  void report(Finite& finite) const {
    if ((fourth[0] | fourth[1] | fourth[2] | fourth[3]) != 0) finite.overflow |= 0x8000u;
  }
};

struct TQ2_0 {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kTernary2);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_fields<2, 32>(rows, 2, to, [](int run, int f) { return (4 * run + f) * kSpec.unit_bytes(); });
    finite.move_halves(rows.at(64), to + kSpec.scale_offset());
  }
};

/// Its digits are no bit fields: they are taken out, and put together anew.
struct TQ1_0 {
  static constexpr LayoutSpec kSpec = layout_spec(LayoutId::kTernary1_6);

  /// The digits of a word of four weights each, first digit first; digit i of word w goes to chunks[stride * i + w].
  template <int words, int digits>
  static void take_digits(Rows rows, Bytes* chunks) {
    const auto loaded = load_words<words>(rows);
    for (int w = 0; w < words; ++w) {
      auto rest = reinterpret_cast<Bytes>(loaded[w]);
      for (int i = 0; i < digits; ++i) {
        // The whole part of 3 * rest / 256. Comparisons give -1.
        chunks[words * i + w] = reinterpret_cast<Bytes>(-((rest >= 86) + (rest >= 171)));
        rest *= 3;
      }
    }
  }

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    constexpr int kQuintets = 13;
    for (int r = 0; r < kPanelRows; r += 4) {
      std::array<Bytes, 5 * kQuintets> chunks;
      take_digits<8, 5>(rows.row(r), &chunks[0]);
      take_digits<4, 5>(rows.row(r).at(32), &chunks[40]);
      take_digits<1, 4>(rows.row(r).at(48), &chunks[60]);
      chunks[64] = Bytes{} + 1;  // the last quintet has four chunks
      for (int q = 0; q < kQuintets; ++q) {
        Bytes number = chunks[5 * q];
        for (int i = 1; i < 5; ++i) number = 3 * number + chunks[5 * q + i];
        // ceil(256 / 243 * number), of the even bytes and of the odd ones.
        const auto pairs = reinterpret_cast<Halves>(number);
        const Halves even = ((pairs << 8) + 242) / 243;
        const Halves odd = ((pairs & 0xFF00) + 242) / 243;
        store(to + q * 64 + r * 4, reinterpret_cast<Words>(even | odd << 8));
      }
    }
    finite.move_halves(rows.at(52), to + kSpec.scale_offset());
  }
};

/// The scale stands behind the tensor, and is put into the panels by who knows it.
template <LayoutId layout, int span>
struct I2_S {
  static constexpr LayoutSpec kSpec = layout_spec(layout);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    // The first weights of a group are in the upper bits.
    move_fields<2, span>(rows, kSpec.block / (4 * span), to,
                         [](int run, int f) { return run * 64 * span / 4 + (3 - f) * 4 * span; });
    Codes codes;
    for (int r = 0; r < kPanelRows; r += 4) {
      for (int i = 0; i < kSpec.block / 64; ++i) {
        for (const Words words : load_words<4>(rows.row(r).at(16 * i))) codes.add(words);
      }
    }
    codes.report(finite);
  }
};

/// Blocks of `size` weights in order, 16 to a word. All have one scale where the panel has one for several.
template <LayoutId layout, int size>
struct Q2_0 {
  static constexpr LayoutSpec kSpec = layout_spec(layout);
  static constexpr int kBytes = 2 + size / 4;

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    Codes codes;
    for (int block = 0; block < kSpec.block / size; ++block) {
      for (int i = 0; i < size / 64; ++i) {
        for (int r = 0; r < kPanelRows; r += 4) {
          auto words = load_words<4>(rows.row(r).at(block * kBytes + 2 + 16 * i));
          for (int w = 0; w < 4; ++w) {
            // A word is a square of 4 x 4 fields, to be transposed: in the number of a bit, 4 with 2 and 3 with 1.
            exchange(words[w], 12, 0x0000F0F0u);
            exchange(words[w], 6, 0x00CC00CCu);
            store(to + ((block * size + 64 * i) / 16 + w) * 64 + r * 4, words[w]);
            codes.add(words[w]);
          }
        }
      }
    }
    if constexpr (is_ternary_layout(layout)) codes.report(finite);
    finite.move_halves(rows, to + kSpec.scale_offset());
  }
};

template <LayoutId layout>
struct Q1_0 {
  static constexpr LayoutSpec kSpec = layout_spec(layout);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    for (int unit = 0; unit < kSpec.units(); ++unit) {
      move_bits(rows.at(unit / 4 * 18 + 2 + unit % 4 * 4), to + unit * kSpec.unit_bytes());
    }
    finite.move_halves(rows, to + kSpec.scale_offset());
  }
};

}  // namespace

FastPack fast_pack_ternary(const Format& format) {
  using enum LayoutId;
  switch (format.id) {
    case FormatId::kTQ1_0:
      return &pack_blocks<TQ1_0, 54>;
    case FormatId::kTQ2_0:
      return &pack_blocks<TQ2_0, 66>;
    case FormatId::kI2_S:
      return &pack_blocks<I2_S<kInt2Wide, 32>, 32>;
    case FormatId::kI2_S_ARM:
      return &pack_blocks<I2_S<kInt2Wide, 16>, 32>;
    case FormatId::kI2_S_Ternary:
      return &pack_blocks<I2_S<kTernary2, 32>, 64>;
    case FormatId::kI2_S_ARM_Ternary:
      return &pack_blocks<I2_S<kTernary2, 16>, 64>;
    case FormatId::kQ1_0:
      return &pack_blocks<Q1_0<kInt1>, 18>;
    case FormatId::kQ1_0_Ternary:
      return &pack_blocks<Q1_0<kBinary>, 36>;
    case FormatId::kQ2_0:
      return &pack_blocks<Q2_0<kInt2, 64>, 18>;
    case FormatId::kQ2_0_Ternary:
      return &pack_blocks<Q2_0<kTernary2, 64>, 72>;
    case FormatId::kQ2_0_G128:
      return &pack_blocks<Q2_0<kInt2Wide, 128>, 34>;
    case FormatId::kQ2_0_G128_Ternary:
      return &pack_blocks<Q2_0<kTernary2, 128>, 68>;
    default:
      return nullptr;
  }
}

}  // namespace sterna::quant
