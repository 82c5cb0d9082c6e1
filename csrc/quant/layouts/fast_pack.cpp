/// Packing by moving bit fields, without a look at what they mean.
///
/// In a file a byte holds fields of weights that are far apart (Q4_K: 32 apart); in a plane of a layout it holds fields
/// of chunks side by side. Read as 32-bit words of 4 weights, one is the transpose of the other: 8 / bits words of 8 /
/// bits fields, field i of word j becoming field j of word i. That takes a few shifts and masks for words of four rows
/// at once, after their 16-byte pieces have been transposed so that a register holds the same word of all four.
#include "quant/layouts/fast_pack.h"

#include <array>
#include <bit>
#include <cstring>

#include "quant/layout.h"

namespace sterna::quant {
namespace {

// Vectors of 16 bytes, which every x86-64 and 64-bit ARM CPU has; an extension of gcc and clang.
using Words = std::uint32_t __attribute__((vector_size(16)));
using Halves = std::uint16_t __attribute__((vector_size(16)));
using Bytes = std::uint8_t __attribute__((vector_size(16)));

/// The same bytes of rows `stride` apart.
struct Rows {
  const std::uint8_t* first;
  std::int64_t stride;

  Rows at(std::int64_t offset) const { return {first + offset, stride}; }
  Rows row(int index) const { return {first + index * stride, stride}; }
};

Words load(const std::uint8_t* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

void store(std::uint8_t* to, Words words) { std::memcpy(to, &words, sizeof words); }

std::uint32_t load_word(const std::uint8_t* from) {
  std::uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

void transpose(Words* w) {
  const Words a = __builtin_shufflevector(w[0], w[1], 0, 4, 1, 5);
  const Words b = __builtin_shufflevector(w[2], w[3], 0, 4, 1, 5);
  const Words c = __builtin_shufflevector(w[0], w[1], 2, 6, 3, 7);
  const Words d = __builtin_shufflevector(w[2], w[3], 2, 6, 3, 7);
  w[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  w[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  w[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  w[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

/// The first `count` words of four rows: element r of words[i] is word i of row r.
template <int count>
std::array<Words, count> load_words(Rows rows) {
  std::array<Words, count> words;
  if constexpr (count % 4 == 0) {
    for (int i = 0; i < count; i += 4) {
      for (int r = 0; r < 4; ++r) words[i + r] = load(rows.first + r * rows.stride + 4 * i);
      transpose(&words[i]);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      for (int r = 0; r < 4; ++r) words[i][r] = load_word(rows.first + r * rows.stride + 4 * i);
    }
  }
  return words;
}

/// Exchanges the fields of `low` that stand `shift` above the mask with those of `high` under the mask.
void exchange(Words& low, Words& high, int shift, std::uint32_t mask) {
  const Words difference = ((low >> shift) ^ high) & mask;
  high ^= difference;
  low ^= difference << shift;
}

/// The same within a word.
void exchange(Words& words, int shift, std::uint32_t mask) {
  const Words difference = ((words >> shift) ^ words) & mask;
  words ^= difference ^ (difference << shift);
}

/// Field i of words[j] becomes field j of words[i], in each byte; 8 / bits words.
template <int bits>
void transpose_fields(Words* words) {
  constexpr std::uint32_t masks[] = {0, 0x55555555u, 0x33333333u, 0, 0x0F0F0F0Fu};
  for (int shift = 4; shift >= bits; shift /= 2) {
    const int distance = shift / bits;
    for (int i = 0; i < 8 / bits; ++i) {
      if ((i & distance) == 0) exchange(words[i], words[i + distance], shift, masks[shift]);
    }
  }
}

/// Fields of `bits` bits from runs of `run_bytes` bytes, each run's field f going to the plane at place(run, f).
template <int bits, int run_bytes, class Place>
void move_fields(Rows rows, int runs, std::uint8_t* to, Place place) {
  constexpr int kFields = 8 / bits;
  constexpr int kWords = run_bytes / 4;
  for (int run = 0; run < runs; ++run) {
    for (int r = 0; r < kPanelRows; r += 4) {
      auto words = load_words<kWords>(rows.row(r).at(run * run_bytes));
      for (int w = 0; w < kWords; w += kFields) {
        transpose_fields<bits>(&words[w]);
        for (int f = 0; f < kFields; ++f) store(to + place(run, f) + w / kFields * 64 + r * 4, words[w + f]);
      }
    }
  }
}

/// Bytes of 4 groups a word and row become [group][16].
void store_groups(std::array<Words, 4> rows, std::uint8_t* to, std::uint8_t added = 0) {
  for (Words& words : rows) {  // of four rows: a square of 4 x 4 bytes, to be transposed
    auto bytes = reinterpret_cast<Bytes>(words) + added;
    for (int i = 0; i < 2; ++i)
      bytes = __builtin_shufflevector(bytes, bytes, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    words = reinterpret_cast<Words>(bytes);
  }
  transpose(rows.data());
  for (int g = 0; g < 4; ++g) store(to + g * kPanelRows, rows[g]);
}

/// Group scales that need no computing, [groups] bytes of each row.
template <int groups>
void move_groups(Rows rows, std::uint8_t* to) {
  std::array<std::array<Words, 4>, groups / 4> words;
  for (int r = 0; r < 4; ++r) {
    const auto four = load_words<groups / 4>(rows.row(4 * r));
    for (int i = 0; i < groups / 4; ++i) words[i][r] = four[i];
  }
  for (int i = 0; i < groups / 4; ++i) store_groups(words[i], to + 4 * i * kPanelRows);
}

/// Gathers whether a number is not finite: adding one to an exponent of ones alone reaches bit 15 (31 of a float).
struct Finite {
  std::uint32_t overflow = 0;

  /// One half of each row, to [16].
  void move_halves(Rows rows, std::uint8_t* to) {
    for (int r = 0; r < kPanelRows; ++r) {
      std::uint16_t half;
      std::memcpy(&half, rows.first + r * rows.stride, 2);
      std::memcpy(to + 2 * r, &half, 2);
      overflow |= (half & 0x7C00u) + 0x0400u;
    }
  }
};

// One struct a format: how a block of 16 rows becomes a panel block. The byte maps are in quant/formats and in
// quant/layout.h.

/// 4 bits of blocks of 32: the fields of 16 bytes are the halves of a unit.
void move_half_units(Rows rows, int units, int unit_bytes, std::uint8_t* to) {
  move_fields<4, 16>(rows, units, to, [=](int run, int f) { return run * unit_bytes + f * 128; });
}

/// The fifth bits of 32 weights in order, bit 4 c + j of a word becoming bit c of byte j.
void move_fifth_bits(Rows rows, std::uint8_t* to) {
  for (int r = 0; r < kPanelRows; r += 4) {
    auto words = load_words<1>(rows.row(r));
    exchange(words[0], 14, 0x0000CCCCu);  // in the number of the bit: 4 with 1, 3 with 0, 2 with 1, 1 with 0
    exchange(words[0], 7, 0x00AA00AAu);
    exchange(words[0], 2, 0x0C0C0C0Cu);
    exchange(words[0], 1, 0x22222222u);
    store(to + r * 4, words[0]);
  }
}

template <LayoutId layout, int codes_at>
struct Nibbles32 {  // Q4_0, Q4_1, IQ4_NL, Q5_0, Q5_1
  static constexpr LayoutSpec kSpec = layout_spec(layout);

  static void pack(Rows rows, std::uint8_t* to, Finite& finite) {
    move_half_units(rows.at(codes_at), 1, kSpec.unit_bytes(), to);
    if constexpr (kSpec.high_bits != 0) move_fifth_bits(rows.at(codes_at - 4), to + 4 * 64);
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

template <class Format, int block_bytes>
bool pack_blocks(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel) {
  Finite finite;
  for (std::int64_t b = 0; b < k / Format::kSpec.block; ++b) {
    Format::pack({rows + b * block_bytes, row_bytes}, panel + b * Format::kSpec.block_bytes(), finite);
  }
  return (finite.overflow & 0x8000u) == 0;
}

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
    case FormatId::kTQ1_0:
      return &pack_blocks<TQ1_0, 54>;
    case FormatId::kTQ2_0:
      return &pack_blocks<TQ2_0, 66>;
    default:
      return nullptr;
  }
}

}  // namespace sterna::quant
