/// The codebooks of the IQ1, IQ2 and IQ3 formats (constants of the formats; ggml-common.h, iq*_grid) and their sign
/// bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sterna::quant {

template <std::size_t kWidth, std::size_t kCount>
using Grid = std::array<std::array<std::int8_t, kWidth>, kCount>;

extern const Grid<8, 2048> kIq1Grid;    // IQ1_S and IQ1_M; eight times the values -1, 0, 1
extern const Grid<8, 256> kIq2XxsGrid;  // 8, 25, 43
extern const Grid<8, 512> kIq2XsGrid;   // 8, 25, 43
extern const Grid<8, 1024> kIq2SGrid;   // 8, 25, 43
extern const Grid<4, 256> kIq3XxsGrid;  // 4, 12, 20, 28, 36, 44, 52, 62
extern const Grid<4, 512> kIq3SGrid;    // odd numbers 1 to 15

/// Eight sign bits from seven stored ones: the eighth makes their number even (ggml-common.h, ksigns_iq2xs).
inline std::uint32_t even_signs(std::uint32_t seven_bits) {
  std::uint32_t parity = seven_bits ^ (seven_bits >> 4);
  parity ^= parity >> 2;
  parity ^= parity >> 1;
  return seven_bits | ((parity & 1u) << 7);
}

/// The grid's values, negated where bit i of `signs` is set.
template <std::size_t kWidth>
inline void put_signed(const std::array<std::int8_t, kWidth>& values, std::uint32_t signs, std::int8_t* codes) {
  for (std::size_t i = 0; i < kWidth; ++i) {
    const int negative = -static_cast<int>((signs >> i) & 1u);
    codes[i] = static_cast<std::int8_t>((values[i] ^ negative) - negative);
  }
}

}  // namespace sterna::quant
