/// IQ2_XXS: 256 weights in 8 groups of 32; eight weights are a row of a 256-row codebook and their signs.
///
/// weight = d * (0.5 + scale) * 0.25 * row value * sign; here (d / 8) * (2 scale + 1) * code.
/// 66 bytes:
///   0..1    d        f16
///   2..65   groups   eight bytes each: four row numbers, then a 32-bit number with four times 7 sign bits (from the
///                    low end) and the 4-bit scale on top
/// Run r (r < 4) of group g is weights 32 g + 8 r .. + 7. The eighth sign of a run is the parity of the other seven.
/// Source: ggml-common.h (block_iq2_xxs), gguf.quants (IQ2_XXS).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct GroupIQ2_XXS {
  std::uint8_t rows[4];
  std::uint8_t signs_and_scale[4];
};

struct BlockIQ2_XXS {
  std::uint8_t d[2];
  GroupIQ2_XXS groups[8];
};
static_assert(sizeof(BlockIQ2_XXS) == 66);

}  // namespace

void decode_iq2_xxs(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ2_XXS>(block);
  set_super_scale(out, load_half(b.d) * 0.125f);
  for (int g = 0; g < 8; ++g) {
    const std::uint32_t word = load_u32(b.groups[g].signs_and_scale);
    out.group_scale[g] = static_cast<std::int16_t>(2 * (word >> 28) + 1);
    for (int r = 0; r < 4; ++r) {
      put_signed(kIq2XxsGrid[b.groups[g].rows[r]], even_signs((word >> (7 * r)) & 127u), out.codes + 32 * g + 8 * r);
    }
  }
}

}  // namespace sterna::quant
