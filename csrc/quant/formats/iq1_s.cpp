/// IQ1_S and IQ1_M: 256 weights; eight weights are a row (of -1, 0, 1) of a codebook, moved up or down by 1/8.
///
/// weight = (d * (2 scale + 1)) * (row value +- 1/8); here (d / 8) * (2 scale + 1) * code, code = 8 * row value +- 1.
/// Run r (r < 32) is weights 8 r .. 8 r + 7. The codebook has 2048 rows; the low eight bits of a run's row number are
/// qs[r].
/// IQ1_S, 50 bytes, 8 groups of 32:
///   0..1     d        f16
///   2..33    qs       low bits of the row numbers
///   34..49   qh       one 16-bit number per group: bits 3i .. 3i + 2 are the high bits of the row number of run
///                     4 g + i, bits 12..14 the scale; bit 15 set means down
/// IQ1_M, 56 bytes, 16 groups of 16:
///   0..31    qs       low bits of the row numbers
///   32..47   qh       nibble r, the low one of a byte first: the high three bits of the row number of run r; bit 3 set
///                     means down
///   48..55   scales   four 16-bit numbers: the scale of group g is the three bits from 3 (g % 4) of number g / 4; the
///                     top nibbles of the four, the first one lowest, are d (f16)
/// Source: ggml-common.h (block_iq1_s, block_iq1_m, IQ1S_DELTA), gguf.quants (IQ1_S, IQ1_M).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"
#include "quant/formats/iq_grids.h"

namespace sterna::quant {
namespace {

struct BlockIQ1_S {
  std::uint8_t d[2];
  std::uint8_t qs[32];
  std::uint8_t qh[16];
};
static_assert(sizeof(BlockIQ1_S) == 50);

struct BlockIQ1_M {
  std::uint8_t qs[32];
  std::uint8_t qh[16];
  std::uint8_t scales[8];
};
static_assert(sizeof(BlockIQ1_M) == 56);

inline void put_shifted(std::uint32_t row, bool down, std::int8_t* codes) {
  const int shift = down ? -1 : 1;
  for (int i = 0; i < 8; ++i) codes[i] = static_cast<std::int8_t>(kIq1Grid[row][i] + shift);
}

}  // namespace

void decode_iq1_s(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ1_S>(block);
  set_super_scale(out, load_half(b.d) * 0.125f);
  for (int g = 0; g < 8; ++g) {
    const std::uint32_t word = load_u16(b.qh + 2 * g);
    out.group_scale[g] = static_cast<std::int16_t>(2 * ((word >> 12) & 7u) + 1);
    for (int i = 0; i < 4; ++i) {
      const std::uint32_t row = b.qs[4 * g + i] | (((word >> (3 * i)) & 7u) << 8);
      put_shifted(row, (word & 0x8000u) != 0, out.codes + 32 * g + 8 * i);
    }
  }
}

void decode_iq1_m(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ1_M>(block);
  std::uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = load_u16(b.scales + 2 * i);
    d |= (word >> 12) << (4 * i);
    for (int j = 0; j < 4; ++j) {
      out.group_scale[4 * i + j] = static_cast<std::int16_t>(2 * ((word >> (3 * j)) & 7u) + 1);
    }
  }
  set_super_scale(out, half_to_float(static_cast<std::uint16_t>(d)) * 0.125f);
  for (int r = 0; r < 32; ++r) {
    const std::uint32_t high = load_nibble(b.qh, r);
    put_shifted(b.qs[r] | ((high & 7u) << 8), (high & 8u) != 0, out.codes + 8 * r);
  }
}

}  // namespace sterna::quant
