/// Q6_K: 256 weights of 6 bits in 16 groups of 16, each group with a signed 8-bit scale.
///
/// 210 bytes, weight = (d * scale) * (code - 32):
///   0..127     ql       low four bits
///   128..191   qh       high two bits
///   192..207   scales   signed bytes
///   208..209   d        f16
/// Weight 128 h + 32 s + j (h < 2, s < 4, j < 32): its low four bits are nibble s / 2 of byte ql[64 h + 32 (s % 2) + j]
/// (nibble 0 is the low one), its high two are bits 2s, 2s + 1 of byte qh[32 h + j].
/// Source: ggml-common.h (block_q6_K), gguf.quants (Q6_K).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ6_K {
  std::uint8_t ql[128];
  std::uint8_t qh[64];
  std::int8_t scales[16];
  std::uint8_t d[2];
};
static_assert(sizeof(BlockQ6_K) == 210);

}  // namespace

void decode_q6_k(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ6_K>(block);
  set_super_scale(out, load_half(b.d));
  for (int g = 0; g < 16; ++g) out.group_scale[g] = b.scales[g];
  for (int h = 0; h < 2; ++h) {
    for (int s = 0; s < 4; ++s) {
      for (int j = 0; j < 32; ++j) {
        const int low = (b.ql[64 * h + 32 * (s % 2) + j] >> (4 * (s / 2))) & 15;
        const int high = (b.qh[32 * h + j] >> (2 * s)) & 3;
        out.codes[128 * h + 32 * s + j] = static_cast<std::int8_t>((low | (high << 4)) - 32);
      }
    }
  }
}

}  // namespace sterna::quant
