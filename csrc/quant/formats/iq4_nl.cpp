/// IQ4_NL and IQ4_XS: 4-bit indices into a table of 16 unevenly spaced values.
///
/// IQ4_NL, 18 bytes, 32 weights, weight = d * table[nibble]:
///   0..1     d          f16
///   2..17    qs         byte qs[j] holds weight j (low nibble) and weight j + 16 (high)
/// IQ4_XS, 136 bytes, 256 weights in 8 groups of 32, weight = (d * (scale - 32)) * table[nibble]:
///   0..1     d          f16
///   2..3     scales_h   16-bit number: the high two bits of scale g are its bits 2g, 2g + 1
///   4..7     scales_l   the low four bits of scale g are nibble g, the low one of a byte first
///   8..135   qs         byte qs[16 g + j] (j < 16) holds weight 32 g + j (low) and weight 32 g + 16 + j (high)
/// Source: ggml-common.h (block_iq4_nl, block_iq4_xs, kvalues_iq4nl), gguf.quants (IQ4_NL, IQ4_XS).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockIQ4_NL {
  std::uint8_t d[2];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18);

struct BlockIQ4_XS {
  std::uint8_t d[2];
  std::uint8_t scales_h[2];
  std::uint8_t scales_l[4];
  std::uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136);

constexpr std::int8_t kCodes[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

}  // namespace

void decode_iq4_nl(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ4_NL>(block);
  set_block_scale(out, load_half(b.d));
  for (int j = 0; j < 16; ++j) {
    out.codes[j] = kCodes[b.qs[j] & 15];
    out.codes[j + 16] = kCodes[b.qs[j] >> 4];
  }
}

void decode_iq4_xs(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockIQ4_XS>(block);
  set_super_scale(out, load_half(b.d));
  const std::uint32_t high = load_u16(b.scales_h);
  for (int g = 0; g < 8; ++g) {
    const std::uint32_t scale = load_nibble(b.scales_l, g) | (((high >> (2 * g)) & 3u) << 4);
    out.group_scale[g] = static_cast<std::int16_t>(static_cast<int>(scale) - 32);
    for (int j = 0; j < 16; ++j) {
      out.codes[32 * g + j] = kCodes[b.qs[16 * g + j] & 15];
      out.codes[32 * g + 16 + j] = kCodes[b.qs[16 * g + j] >> 4];
    }
  }
}

}  // namespace sterna::quant
