/// Writing fields of blocks: little-endian on every host, at any alignment.
#pragma once

#include <cstdint>

namespace sterna::quant {

inline void store_u16(std::uint8_t* bytes, std::uint16_t value) {
  bytes[0] = static_cast<std::uint8_t>(value);
  bytes[1] = static_cast<std::uint8_t>(value >> 8);
}

inline void store_u32(std::uint8_t* bytes, std::uint32_t value) {
  store_u16(bytes, static_cast<std::uint16_t>(value));
  store_u16(bytes + 2, static_cast<std::uint16_t>(value >> 16));
}

/// 32 codes of four or five bits as Q4_0 to Q5_1 have them: the low four bits of code j and of code j + 16 share byte j
/// of `nibbles`; the fifth bits are the bits of `fifth`, which is null for codes of four bits. Not inlined: gcc 12
/// packs the bytes one by one where it sees how the codes were made.
template <class Code>
[[gnu::noinline]] void store_codes_of_32(const Code* codes, std::uint8_t* fifth, std::uint8_t* nibbles) {
  for (int j = 0; j < 16; ++j) nibbles[j] = static_cast<std::uint8_t>((codes[j] & 15) | (codes[j + 16] << 4));
  if (fifth == nullptr) return;
  for (int byte = 0; byte < 4; ++byte) {
    unsigned bits = 0;
    for (int bit = 0; bit < 8; ++bit) bits |= static_cast<unsigned>(codes[8 * byte + bit] >> 4) << bit;
    fifth[byte] = static_cast<std::uint8_t>(bits);
  }
}

}  // namespace sterna::quant
