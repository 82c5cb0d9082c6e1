/// Q2_K: 256 weights of 2 bits in 16 groups of 16, each group with a 4-bit scale and a 4-bit minimum.
///
/// 84 bytes, weight = (d * scale) * code - dmin * min:
///   0..15    scales   group g: scale in the low nibble of scales[g], minimum in the high one
///   16..79   qs       two bits each
///   80..81   d        f16
///   82..83   dmin     f16
/// Weight 128 h + 32 s + j (h < 2, s < 4, j < 32) is bits 2s, 2s + 1 of byte qs[32 h + j].
/// Source: ggml-common.h (block_q2_K), gguf.quants (Q2_K).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ2_K {
  std::uint8_t scales[16];
  std::uint8_t qs[64];
  std::uint8_t d[2];
  std::uint8_t dmin[2];
};
static_assert(sizeof(BlockQ2_K) == 84);

}  // namespace

void decode_q2_k(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ2_K>(block);
  out.scale[0] = load_half(b.d);
  out.min[0] = load_half(b.dmin);
  for (int g = 0; g < 16; ++g) {
    out.group_scale[g] = b.scales[g] & 15;
    out.group_min[g] = b.scales[g] >> 4;
  }
  for (int h = 0; h < 2; ++h) {
    for (int s = 0; s < 4; ++s) {
      for (int j = 0; j < 32; ++j) {
        out.codes[128 * h + 32 * s + j] = static_cast<std::int8_t>((b.qs[32 * h + j] >> (2 * s)) & 3);
      }
    }
  }
}

}  // namespace sterna::quant
