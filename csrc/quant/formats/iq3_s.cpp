/// IQ3_S: 256 weights in 8 groups of 32; four weights are a row of a 512-row codebook, with free signs.
///
/// 110 bytes, weight = (d * (2 scale + 1)) * row value * sign:
///   0..1       d        f16
///   2..65      qs       low eight bits of the row numbers; row r is weights 4 r .. 4 r + 3
///   66..73     qh       the ninth bit of row number r is bit r % 8 of byte qh[r / 8]
///   74..105    signs    bit i % 8 of signs[i / 8] negates weight i
///   106..109   scales   the scale of group g is nibble g, the low one of a byte first
/// Source: ggml-common.h (block_iq3_s), gguf.quants (IQ3_S).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct BlockIQ3_S {
  std::uint8_t d[2];
  std::uint8_t qs[64];
  std::uint8_t qh[8];
  std::uint8_t signs[32];
  std::uint8_t scales[4];
};
static_assert(sizeof(BlockIQ3_S) == 110);

}  // namespace

void decode_iq3_s(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ3_S>(block);
  set_super_scale(out, load_half(b.d));
  for (int g = 0; g < 8; ++g) out.group_scale[g] = static_cast<std::int16_t>(2 * load_nibble(b.scales, g) + 1);
  for (int r = 0; r < 64; ++r) {
    const std::uint32_t high = (b.qh[r / 8] >> (r % 8)) & 1u;
    const std::uint32_t signs = b.signs[r / 2] >> (4 * (r % 2));
    put_signed(kIq3SGrid[b.qs[r] | (high << 8)], signs, out.codes + 4 * r);
  }
}

}  // namespace sterna::quant
