/// Q4_K and Q5_K: 256 weights of 4 or 5 bits in 8 groups of 32, each group with a 6-bit scale and a 6-bit minimum.
///
/// Both: weight = (d * scale) * code - dmin * min.
/// Q4_K, 144 bytes:
///   0..1      d        f16
///   2..3      dmin     f16
///   4..15     scales   scales and minima
///   16..143   qs       nibbles
/// Q5_K, 176 bytes:
///   0..1      d        f16
///   2..3      dmin     f16
///   4..15     scales   scales and minima
///   16..47    qh       fifth bits
///   48..175   qs       low four bits
/// Weight 64 c + 32 n + j (c < 4, n < 2, j < 32): its low four bits are nibble n of byte qs[32 c + j] (nibble 0 is
/// the low one), its fifth bit is bit 2 c + n of byte qh[j].
/// Groups 0..3: scale g is the low six bits of byte scales[g], minimum g the low six of scales[4 + g].
/// Groups 4..7: the low four bits of scale and minimum are the low and the high nibble of scales[4 + g], the high two
/// are bits 6, 7 of scales[g - 4] for the scale and of scales[g] for the minimum.
/// Source: ggml-common.h (block_q4_K, block_q5_K), gguf.quants (Q4_K.get_scale_min, Q4_K, Q5_K).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ4_K {
  std::uint8_t d[2];
  std::uint8_t dmin[2];
  std::uint8_t scales[12];
  std::uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

struct BlockQ5_K {
  std::uint8_t d[2];
  std::uint8_t dmin[2];
  std::uint8_t scales[12];
  std::uint8_t qh[32];
  std::uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

inline void decode_scales(const std::uint8_t (&scales)[12], DecodedBlock& out) {
  for (int g = 0; g < 4; ++g) {
    out.group_scale[g] = scales[g] & 63;
    out.group_min[g] = scales[4 + g] & 63;
    out.group_scale[4 + g] = static_cast<std::int16_t>((scales[8 + g] & 15) | ((scales[g] >> 6) << 4));
    out.group_min[4 + g] = static_cast<std::int16_t>((scales[8 + g] >> 4) | ((scales[4 + g] >> 6) << 4));
  }
}

}  // namespace

void decode_q4_k(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ4_K>(block);
  out.scale[0] = load_half(b.d);
  out.min[0] = load_half(b.dmin);
  decode_scales(b.scales, out);
  for (int c = 0; c < 4; ++c) {
    for (int j = 0; j < 32; ++j) {
      out.codes[64 * c + j] = static_cast<std::int8_t>(b.qs[32 * c + j] & 15);
      out.codes[64 * c + 32 + j] = static_cast<std::int8_t>(b.qs[32 * c + j] >> 4);
    }
  }
}

void decode_q5_k(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ5_K>(block);
  out.scale[0] = load_half(b.d);
  out.min[0] = load_half(b.dmin);
  decode_scales(b.scales, out);
  for (int c = 0; c < 4; ++c) {
    for (int j = 0; j < 32; ++j) {
      const int high = b.qh[j] >> (2 * c);
      out.codes[64 * c + j] = static_cast<std::int8_t>((b.qs[32 * c + j] & 15) | ((high & 1) << 4));
      out.codes[64 * c + 32 + j] = static_cast<std::int8_t>((b.qs[32 * c + j] >> 4) | ((high & 2) << 3));
    }
  }
}

}  // namespace sterna::quant
