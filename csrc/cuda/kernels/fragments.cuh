/// How a panel of 16 weight rows lies in device memory, and how a lane turns its share of it into operands of an mma.
///
/// A panel is a sequence of blocks as in quant/layout.h, with the same scales and as many bytes; only the codes of a
/// unit (16 rows x 32 k) are in another order: each lane's 16 codes side by side, low bits of all lanes first, then
/// their high bits. Lane 4 g + t holds, for step s (16 k each), word j of an mma and half h of that word:
///
///   row = g + 8 (j & 1),  k = 16 s + 4 t + 2 (j >> 1) + h
///
/// so that the activations it needs are 4 neighbours. Where its code lies in the lane's bits:
///
///   8 bits: byte 8 s + 4 (j >> 1) + (j & 1) + 2 h      4 bits: from bit 32 s + 4 j + 16 h
///   2 bits: from bit 2 (4 s + j) + 16 h                 1 bit:  bit 4 s + j + 8 h
///
/// A dense panel of 2-byte numbers has the same order in units of 32 k, half h of word j of step s at byte 16 s + 4 j +
/// 2 h of the lane's 32; one of floats is [k][16].
#pragma once

#include "base/half.h"
#include "cuda/kernels/device.cuh"

namespace sterna::cuda {

struct CodePlace {
  int lane, step, word, half;
};
/// Who holds the code of a row and a k of a unit.
__host__ __device__ constexpr CodePlace code_place(int row, int k) {
  const int in_step = k % 16;
  return {row % 8 * 4 + in_step / 4, k / 16, row / 8 + (in_step % 4 / 2) * 2, in_step % 2};
}
/// Its first bit in the unit's plane of `bits` bits a code.
__host__ __device__ constexpr int code_bit(const CodePlace& place, int bits) {
  const auto [lane, s, j, h] = place;
  const int in_lane = bits == 8   ? 8 * (8 * s + 4 * (j / 2) + j % 2 + 2 * h)
                      : bits == 4 ? 32 * s + 4 * j + 16 * h
                      : bits == 2 ? 2 * (4 * s + j) + 16 * h
                                  : 4 * s + j + 8 * h;
  return lane * 16 * bits + in_lane;
}

/// A scale as it is stored, `index` counting stored scales.
template <ScaleStore store>
__device__ inline float load_scale(const std::uint8_t* scales, int index) {
  if constexpr (store == ScaleStore::kHalf) {
    return half_to_float(reinterpret_cast<const std::uint16_t*>(scales)[index]);
  } else if constexpr (store == ScaleStore::kFloat) {
    return reinterpret_cast<const float*>(scales)[index];
  } else if constexpr (store == ScaleStore::kE8M0) {  // 2^(e - 128)
    const std::uint32_t e = scales[index];
    return bits_to_float(e >= 2 ? (e - 1) << 23 : e == 1 ? 0x00400000u : 0x00200000u);
  } else {  // kUE4M3: its bits where a float has them, times 2^120 / 2
    return bits_to_float(static_cast<std::uint32_t>(scales[index]) << 20) * 0x1p119f;
  }
}

/// The codes of a quantised layout.
template <LayoutId id>
struct Codes {
  static constexpr LayoutSpec kSpec = layout_spec(id);
  static constexpr int kLow = kSpec.low_bits, kHigh = kSpec.high_bits;
  static constexpr bool kIsSuper = kSpec.scales == ScaleKind::kSuper;
  static constexpr bool kHasMin = kSpec.has_min;
  static constexpr int kUnitBytes = kSpec.unit_bytes();

  /// The float that multiplies a group's sum for a row of the panel: exact.
  __device__ static float scale(const std::uint8_t* block, int group, int row) {
    const std::uint8_t* stored = block + kSpec.scale_offset();
    if constexpr (!kIsSuper) {
      return load_scale<kSpec.scale_store>(stored, group * kPanelRows + row);
    } else {
      const float d = load_scale<kSpec.scale_store>(stored, row);
      if constexpr (kSpec.group_store == GroupStore::kNone) return d;
      const std::uint8_t code = block[kSpec.group_scale_offset() + group * kPanelRows + row];
      if constexpr (kSpec.group_store == GroupStore::kSigned8)
        return d * static_cast<float>(static_cast<std::int8_t>(code));
      if constexpr (kSpec.group_store == GroupStore::kNibbles) return d * static_cast<float>(code & 15);
      return d * static_cast<float>(code);
    }
  }
  /// What is added to each value of a group.
  __device__ static float minimum(const std::uint8_t* block, int group, int row) {
    if constexpr (!kHasMin) {
      return 0.0f;
    } else {
      const float m = half_to_float(reinterpret_cast<const std::uint16_t*>(block + kSpec.min_offset())[row]);
      if constexpr (!kIsSuper) return m;
      if constexpr (kSpec.group_store == GroupStore::kNibbles) {
        return -m * static_cast<float>(block[kSpec.group_scale_offset() + group * kPanelRows + row] >> 4);
      }
      return -m * static_cast<float>(block[kSpec.group_min_offset() + group * kPanelRows + row]);
    }
  }

  /// The lane's operands of both steps of a unit: step * code - bias, or the table's value, exact in binary16.
  __device__ static void load(const std::uint8_t* unit, int lane, std::uint32_t (&a)[2][4]) {
    if constexpr (kLow == 8) {
      const uint4 words = reinterpret_cast<const uint4*>(unit)[lane];
      spread_bytes(words.x, words.y, a[0]);
      spread_bytes(words.z, words.w, a[1]);
    } else if constexpr (kLow == 4) {
      const uint2 words = reinterpret_cast<const uint2*>(unit)[lane];
      if constexpr (kSpec.is_table) {
        look_up(words.x, a[0]);
        look_up(words.y, a[1]);
      } else if constexpr (kHigh == 0) {
        nibbles(words.x, a[0]);
        nibbles(words.y, a[1]);
      } else {
        const std::uint32_t high = high_bits(unit, lane);
        with_high<0>(words.x, high, a[0]);
        with_high<1>(words.y, high, a[1]);
      }
    } else if constexpr (kLow == 2) {
      const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(unit)[lane];
      if constexpr (kHigh == 0) {
        fields<0>(word, a[0]);
        fields<1>(word, a[1]);
      } else {
        const std::uint32_t high = high_bits(unit, lane);
        with_high<0>(word, high, a[0]);
        with_high<1>(word >> 8, high, a[1]);
      }
    } else {
      const std::uint32_t word = spread(reinterpret_cast<const std::uint16_t*>(unit)[lane]);
      fields<0>(word, a[0]);
      fields<1>(word, a[1]);
    }
  }

 private:
  static constexpr std::uint32_t twice(std::uint16_t half) { return half | static_cast<std::uint32_t>(half) << 16; }
  static constexpr std::uint32_t kMagic = twice(sterna::float_to_half(1024.0f));  // + n has n in its lowest bits
  static constexpr std::uint32_t kOffset = twice(sterna::float_to_half(1024.0f + static_cast<float>(kSpec.bias)));

  /// Bits 0..7 stay, 8..15 go to 16..23.
  __device__ static std::uint32_t spread(std::uint32_t halves) { return (halves & 0xFFu) | (halves & 0xFF00u) << 8; }

  /// High bits of the lane's codes: that of step s and word j at bit kHigh * (4 s + j), + 16 in the upper half.
  __device__ static std::uint32_t high_bits(const std::uint8_t* unit, int lane) {
    const std::uint8_t* plane = unit + 64 * kLow;
    if constexpr (kHigh == 2) return reinterpret_cast<const std::uint32_t*>(plane)[lane];
    return spread(reinterpret_cast<const std::uint16_t*>(plane)[lane]);
  }

  /// The field of `bits` bits from bit `at` on, in both halves, as numbers. A field in the lowest 10 bits needs no
  /// shift: it counts 2^at times as much, and a multiplication undoes that.
  template <int bits, int at>
  __device__ static std::uint32_t field(std::uint32_t word) {
    // Twice the code: from the bit above, since 2 * 1024 + 1 is no binary16 number.
    if constexpr (kSpec.step == 2 && at == 0) return field<bits, 1>(word << 1);
    constexpr int kShift = at + bits > 10 ? at : 0;
    constexpr int kAt = at - kShift;
    constexpr std::uint32_t kMask = ((1u << bits) - 1) << kAt;
    const std::uint32_t magic = and_or<kMask | kMask << 16, kMagic>(word >> kShift);
    if constexpr (kAt == 0 && kSpec.step == 1) {
      return sub_halves(magic, kOffset);
    } else {
      constexpr float kFactor = static_cast<float>(kSpec.step) / static_cast<float>(1 << kAt);
      constexpr std::uint32_t kFactors = twice(sterna::float_to_half(kFactor));
      constexpr std::uint32_t kRest = twice(sterna::float_to_half(-1024.0f * kFactor - static_cast<float>(kSpec.bias)));
      return fma_halves(magic, kFactors, kRest);
    }
  }

  __device__ static void nibbles(std::uint32_t word, std::uint32_t (&a)[4]) {
    a[0] = field<4, 0>(word);
    a[1] = field<4, 4>(word);
    a[2] = field<4, 0>(word >> 8);
    a[3] = field<4, 4>(word >> 8);
  }

  template <int step>
  __device__ static void fields(std::uint32_t word, std::uint32_t (&a)[4]) {
    a[0] = field<kLow, kLow * (4 * step + 0)>(word);
    a[1] = field<kLow, kLow * (4 * step + 1)>(word);
    a[2] = field<kLow, kLow * (4 * step + 2)>(word);
    a[3] = field<kLow, kLow * (4 * step + 3)>(word);
  }

  /// Low bits of word j from bit kLow * j on.
  template <int step>
  __device__ static void with_high(std::uint32_t low, std::uint32_t high, std::uint32_t (&a)[4]) {
    constexpr std::uint32_t kLowMask = (1u << kLow) - 1, kHighMask = (1u << kHigh) - 1;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t high_part = (high >> (kHigh * (4 * step + j))) & (kHighMask | kHighMask << 16);
      const std::uint32_t low_part = (low >> (kLow * j)) & (kLowMask | kLowMask << 16);
      a[j] = sub_halves(low_part | high_part << kLow | kMagic, kOffset);
    }
  }

  /// Bytes j and j + 2 of two words make words j = 0, 1 and 2, 3.
  __device__ static void spread_bytes(std::uint32_t first, std::uint32_t second, std::uint32_t (&a)[4]) {
    constexpr std::uint32_t kMagicBytes = 0x64646464u;
    a[0] = sub_halves(__byte_perm(first, kMagicBytes, 0x4240), kOffset);
    a[1] = sub_halves(__byte_perm(first, kMagicBytes, 0x4341), kOffset);
    a[2] = sub_halves(__byte_perm(second, kMagicBytes, 0x4240), kOffset);
    a[3] = sub_halves(__byte_perm(second, kMagicBytes, 0x4341), kOffset);
  }

  /// Four bytes of the table, + 128, as a word.
  static constexpr std::uint32_t table_word(int first) {
    const bool is_iq4 = id == LayoutId::kTable4 || id == LayoutId::kTable4Super;
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
      const int value = (is_iq4 ? kIq4Table : kE2M1Table)[static_cast<std::size_t>(first + i)];
      word |= static_cast<std::uint32_t>(value + 128) << (8 * i);
    }
    return word;
  }

  /// The table's values for four nibbles in the lowest 16 bits, as bytes + 128.
  __device__ static std::uint32_t table_bytes(std::uint32_t nibbles) {
    constexpr std::uint32_t kTable[4] = {table_word(0), table_word(4), table_word(8), table_word(12)};
    const std::uint32_t index = nibbles & 0x7777u;
    const std::uint32_t lower = __byte_perm(kTable[0], kTable[1], index);
    const std::uint32_t upper = __byte_perm(kTable[2], kTable[3], index);
    return __byte_perm(lower, upper, 0x3210u | (nibbles & 0x8888u) >> 1);
  }
  __device__ static void look_up(std::uint32_t word, std::uint32_t (&a)[4]) {
    constexpr std::uint32_t kOffset128 = twice(sterna::float_to_half(1024.0f + 128.0f));
    const std::uint32_t low = table_bytes(word & 0xFFFFu);
    const std::uint32_t high = table_bytes(word >> 16);
    // Byte j of both words: the halves of word j.
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::uint32_t selector = static_cast<std::uint32_t>(j) | static_cast<std::uint32_t>(4 + j) << 4;
      const std::uint32_t bytes = __byte_perm(low, high, selector);  // in bytes 0 and 1
      a[j] = sub_halves(__byte_perm(bytes, 0x64646464u, 0x4140), kOffset128);
    }
  }
};

}  // namespace sterna::cuda
