/// Q5_0 and Q5_1: 32 weights of 5 bits with one scale, Q5_1 with a minimum too.
///
/// Q5_0, 22 bytes, weight = d * (code - 16):
///   0..1    d    f16
///   2..5    qh   fifth bits
///   6..21   qs   low four bits
/// Q5_1, 24 bytes, weight = d * code + m:
///   0..1    d    f16
///   2..3    m    f16
///   4..7    qh   fifth bits
///   8..23   qs   low four bits
/// Byte qs[j] holds the low four bits of weight j in its low nibble and those of weight j + 16 in its high one.
/// The fifth bit of weight j is bit j % 8 of byte qh[j / 8].
/// Source: ggml-common.h (block_q5_0, block_q5_1), gguf.quants (Q5_0, Q5_1).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ5_0 {
  std::uint8_t d[2];
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22);

struct BlockQ5_1 {
  std::uint8_t d[2];
  std::uint8_t m[2];
  std::uint8_t qh[4];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24);

inline void decode_codes(const std::uint8_t (&qh)[4], const std::uint8_t (&qs)[16], int offset,
                         std::int8_t (&codes)[256]) {
  // The fifth bits first: a constant mask per lane vectorises, a shift per lane does not.
  static constexpr std::uint8_t kMask[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  std::uint8_t high[32];
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 8; ++j) high[8 * i + j] = (qh[i] & kMask[j]) != 0 ? 16 : 0;
  }
  for (int j = 0; j < 16; ++j) {
    codes[j] = static_cast<std::int8_t>(((qs[j] & 15) | high[j]) - offset);
    codes[j + 16] = static_cast<std::int8_t>(((qs[j] >> 4) | high[j + 16]) - offset);
  }
}

}  // namespace

void decode_q5_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ5_0>(block);
  set_block_scale(out, load_half(b.d));
  decode_codes(b.qh, b.qs, 16, out.codes);
}

void decode_q5_1(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ5_1>(block);
  set_block_scale(out, load_half(b.d), load_half(b.m));
  decode_codes(b.qh, b.qs, 0, out.codes);
}

}  // namespace sterna::quant
