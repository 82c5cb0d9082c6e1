/// Q4_0 and Q4_1: 32 weights of 4 bits with one scale, Q4_1 with a minimum too.
///
/// Q4_0, 18 bytes, weight = d * (nibble - 8):
///   0..1    d    f16
///   2..17   qs   nibbles
/// Q4_1, 20 bytes, weight = d * nibble + m:
///   0..1    d    f16
///   2..3    m    f16
///   4..19   qs   nibbles
/// Byte qs[j] holds weight j in its low nibble and weight j + 16 in its high one.
/// Source: ggml-common.h (block_q4_0, block_q4_1), gguf.quants (Q4_0, Q4_1).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ4_0 {
  std::uint8_t d[2];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18);

struct BlockQ4_1 {
  std::uint8_t d[2];
  std::uint8_t m[2];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20);

}  // namespace

void decode_q4_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ4_0>(block);
  set_block_scale(out, load_half(b.d));
  for (int j = 0; j < 16; ++j) {
    out.codes[j] = static_cast<std::int8_t>((b.qs[j] & 15) - 8);
    out.codes[j + 16] = static_cast<std::int8_t>((b.qs[j] >> 4) - 8);
  }
}

void decode_q4_1(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ4_1>(block);
  set_block_scale(out, load_half(b.d), load_half(b.m));
  for (int j = 0; j < 16; ++j) {
    out.codes[j] = static_cast<std::int8_t>(b.qs[j] & 15);
    out.codes[j + 16] = static_cast<std::int8_t>(b.qs[j] >> 4);
  }
}

}  // namespace sterna::quant
