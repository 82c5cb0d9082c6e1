/// IQ2_XS: 256 weights in 16 groups of 16; eight weights are a row of a 512-row codebook and their signs.
///
/// weight = d * (0.5 + scale) * 0.25 * row value * sign; here (d / 8) * (2 scale + 1) * code.
/// 74 bytes:
///   0..1     d        f16
///   2..65    qs       32 16-bit numbers
///   66..73   scales   the scale of group g is nibble g, the low one of a byte first
/// Number r of qs is weights 8 r .. 8 r + 7: the row number in its low nine bits, seven sign bits above; the eighth
/// sign is their parity.
/// Source: ggml-common.h (block_iq2_xs), gguf.quants (IQ2_XS).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct BlockIQ2_XS {
  std::uint8_t d[2];
  std::uint8_t qs[64];
  std::uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_XS) == 74);

}  // namespace

void decode_iq2_xs(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ2_XS>(block);
  set_super_scale(out, load_half(b.d) * 0.125f);
  for (int g = 0; g < 16; ++g) out.group_scale[g] = static_cast<std::int16_t>(2 * load_nibble(b.scales, g) + 1);
  for (int r = 0; r < 32; ++r) {
    const std::uint32_t word = load_u16(b.qs + 2 * r);
    put_signed(kIq2XsGrid[word & 511u], even_signs(word >> 9), out.codes + 8 * r);
  }
}

}  // namespace sterna::quant
