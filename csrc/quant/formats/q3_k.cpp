/// Q3_K: 256 weights of 3 bits in 16 groups of 16, each group with a signed 6-bit scale.
///
/// 110 bytes, weight = (d * (scale - 32)) * code, codes -4..3:
///   0..31      hmask    third bits
///   32..95     qs       low two bits
///   96..107    scales   six bits each
///   108..109   d        f16
/// Weight 128 h + 32 s + j (h < 2, s < 4, j < 32): its low bits are bits 2s, 2s + 1 of byte qs[32 h + j];
/// four is subtracted where bit 4 h + s of byte hmask[j] is clear.
/// Scale g: its low four bits are nibble g / 8 of byte scales[g % 8] (nibble 0 is the low one), its high two are
/// bits 2 (g / 4) and 2 (g / 4) + 1 of byte scales[8 + g % 4].
/// Source: ggml-common.h (block_q3_K), gguf.quants (Q3_K).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ3_K {
  std::uint8_t hmask[32];
  std::uint8_t qs[64];
  std::uint8_t scales[12];
  std::uint8_t d[2];
};
static_assert(sizeof(BlockQ3_K) == 110);

}  // namespace

void decode_q3_k(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ3_K>(block);
  set_super_scale(out, load_half(b.d));
  for (int g = 0; g < 16; ++g) {
    const int low = (b.scales[g % 8] >> (4 * (g / 8))) & 15;
    const int high = (b.scales[8 + g % 4] >> (2 * (g / 4))) & 3;
    out.group_scale[g] = static_cast<std::int16_t>((low | (high << 4)) - 32);
  }
  for (int h = 0; h < 2; ++h) {
    for (int s = 0; s < 4; ++s) {
      for (int j = 0; j < 32; ++j) {
        const int low = (b.qs[32 * h + j] >> (2 * s)) & 3;
        const int high = (b.hmask[j] >> (4 * h + s)) & 1;
        out.codes[128 * h + 32 * s + j] = static_cast<std::int8_t>((low | (high << 2)) - 4);
      }
    }
  }
}

}  // namespace sterna::quant
