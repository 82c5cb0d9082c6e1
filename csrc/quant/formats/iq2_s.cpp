/// IQ2_S: 256 weights in 16 groups of 16; eight weights are a row of a 1024-row codebook and eight free signs.
///
/// weight = d * (0.5 + scale) * 0.25 * row value * sign; here (d / 8) * (2 scale + 1) * code.
/// 82 bytes:
///   0..1     d        f16
///   2..33    qs       low eight bits of the row numbers
///   34..65   signs    bit i of signs[r] negates weight 8 r + i
///   66..73   qh       high two bits of row number r: bits 2 (r % 4) and 2 (r % 4) + 1 of byte qh[r / 4]
///   74..81   scales   the scale of group g is nibble g, the low one of a byte first
/// Run r (r < 32) is weights 8 r .. 8 r + 7.
/// Source: ggml-common.h (block_iq2_s), gguf.quants (IQ2_S).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct BlockIQ2_S {
  std::uint8_t d[2];
  std::uint8_t qs[32];
  std::uint8_t signs[32];
  std::uint8_t qh[8];
  std::uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_S) == 82);

}  // namespace

void decode_iq2_s(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ2_S>(block);
  set_super_scale(out, load_half(b.d) * 0.125f);
  for (int g = 0; g < 16; ++g) out.group_scale[g] = static_cast<std::int16_t>(2 * load_nibble(b.scales, g) + 1);
  for (int r = 0; r < 32; ++r) {
    const std::uint32_t high = (b.qh[r / 4] >> (2 * (r % 4))) & 3u;
    put_signed(kIq2SGrid[b.qs[r] | (high << 8)], b.signs[r], out.codes + 8 * r);
  }
}

}  // namespace sterna::quant
