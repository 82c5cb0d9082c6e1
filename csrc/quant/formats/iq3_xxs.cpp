/// IQ3_XXS: 256 weights in 8 groups of 32; four weights are a row of a 256-row codebook, signs come per eight.
///
/// weight = d * (0.5 + scale) * 0.5 * row value * sign; here (d / 4) * (2 scale + 1) * code.
/// 98 bytes:
///   0..1     d                  f16
///   2..65    qs                 qs[r] is the row number of weights 4 r .. 4 r + 3
///   66..97   signs_and_scales   one 32-bit number per group: four times 7 sign bits from the low end, one for each run
///                               of eight weights (the eighth sign is the parity of the seven), the 4-bit scale on top
/// Source: ggml-common.h (block_iq3_xxs), gguf.quants (IQ3_XXS).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct BlockIQ3_XXS {
  std::uint8_t d[2];
  std::uint8_t qs[64];
  std::uint8_t signs_and_scales[32];
};
static_assert(sizeof(BlockIQ3_XXS) == 98);

}  // namespace

void decode_iq3_xxs(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ3_XXS>(block);
  set_super_scale(out, load_half(b.d) * 0.25f);
  for (int g = 0; g < 8; ++g) {
    const std::uint32_t word = load_u32(b.signs_and_scales + 4 * g);
    out.group_scale[g] = static_cast<std::int16_t>(2 * (word >> 28) + 1);
    for (int r = 0; r < 4; ++r) {
      const std::uint32_t signs = even_signs((word >> (7 * r)) & 127u);
      std::int8_t* codes = out.codes + 32 * g + 8 * r;
      put_signed(kIq3XxsGrid[b.qs[8 * g + 2 * r]], signs, codes);
      put_signed(kIq3XxsGrid[b.qs[8 * g + 2 * r + 1]], signs >> 4, codes + 4);
    }
  }
}

}  // namespace sterna::quant
