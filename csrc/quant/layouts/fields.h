/// Moving bit fields from blocks to panels, many at a time.
///
/// In a file a byte holds fields of weights that are far apart (Q4_K: 32 apart); in a plane of a layout it holds fields
/// of chunks side by side. Read as 32-bit words of 4 weights, one is the transpose of the other: 8 / bits words of 8 /
/// bits fields, field i of word j becoming field j of word i. That takes a few shifts and masks for words of four rows
/// at once, after their 16-byte pieces have been transposed so that a register holds the same word of all four.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "quant/layout.h"

namespace sterna::quant {

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

inline Words load(const std::uint8_t* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

inline void store(std::uint8_t* to, Words words) { std::memcpy(to, &words, sizeof words); }

inline std::uint32_t load_word(const std::uint8_t* from) {
  std::uint32_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

inline void transpose(Words* w) {
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
inline void exchange(Words& low, Words& high, int shift, std::uint32_t mask) {
  const Words difference = ((low >> shift) ^ high) & mask;
  high ^= difference;
  low ^= difference << shift;
}

/// The same within a word.
inline void exchange(Words& words, int shift, std::uint32_t mask) {
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
inline void store_groups(std::array<Words, 4> rows, std::uint8_t* to, std::uint8_t added = 0) {
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

/// Bits of 32 weights in order, bit 4 c + j of a word becoming bit c of byte j.
inline void move_bits(Rows rows, std::uint8_t* to) {
  for (int r = 0; r < kPanelRows; r += 4) {
    auto words = load_words<1>(rows.row(r));
    exchange(words[0], 14, 0x0000CCCCu);  // in the number of the bit: 4 with 1, 3 with 0, 2 with 1, 1 with 0
    exchange(words[0], 7, 0x00AA00AAu);
    exchange(words[0], 2, 0x0C0C0C0Cu);
    exchange(words[0], 1, 0x22222222u);
    store(to + r * 4, words[0]);
  }
}

template <class Format, int block_bytes>
bool pack_blocks(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel) {
  Finite finite;
  for (std::int64_t b = 0; b < k / Format::kSpec.block; ++b) {
    Format::pack({rows + b * block_bytes, row_bytes}, panel + b * Format::kSpec.block_bytes(), finite);
  }
  return (finite.overflow & 0x8000u) == 0;
}

}  // namespace sterna::quant
