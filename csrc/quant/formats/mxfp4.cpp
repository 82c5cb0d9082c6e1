/// MXFP4 and NVFP4: 4-bit floats (E2M1) with a scale of 8 bits per 32 or per 16 weights.
///
/// Both: weight = scale * code. A nibble is a sign and an index into the eight magnitudes of E2M1, which are doubled
/// here, so that they are integers; the scales are halved in return.
/// MXFP4, 17 bytes, 32 weights:
///   0       e    scale 2^(e - 128): E8M0, halved
///   1..16   qs   nibbles; byte qs[j] holds weight j (low) and weight j + 16 (high)
/// NVFP4, 36 bytes, 64 weights in 4 groups of 16:
///   0..3    d    scales of the groups: E4M3 without sign, halved; bit 7 is ignored and the byte 0x7F is zero
///   4..35   qs   nibbles; byte qs[8 g + j] (j < 8) holds weight 16 g + j (low) and weight 16 g + j + 8 (high)
/// Source: ggml-common.h (block_mxfp4, block_nvfp4, kvalues_mxfp4), gguf.quants (MXFP4, NVFP4), OCP Microscaling
/// Formats 1.0.
#include <bit>

#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockMXFP4 {
  std::uint8_t e;
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockMXFP4) == 17);

struct BlockNVFP4 {
  std::uint8_t d[4];
  std::uint8_t qs[32];
};
static_assert(sizeof(BlockNVFP4) == 36);

constexpr std::int8_t kCodes[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/// 2^(e - 128); the two smallest are subnormal.
constexpr float half_e8m0_to_float(std::uint8_t e) {
  return std::bit_cast<float>(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
}

/// Half of an unsigned E4M3 number: (8 + mantissa) * 2^(exponent - 11), subnormal mantissa * 2^-10.
constexpr float half_ue4m3_to_float(std::uint8_t x) {
  if (x == 0x7F) return 0.0f;
  const std::uint32_t exponent = (x >> 3) & 15u;
  const std::uint32_t mantissa = x & 7u;
  const std::uint32_t whole = exponent == 0 ? mantissa : 8 + mantissa;
  const std::uint32_t power = (exponent == 0 ? 1 : exponent) + 127 - 11;
  return static_cast<float>(whole) * std::bit_cast<float>(power << 23);
}

}  // namespace

void decode_mxfp4(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockMXFP4>(block);
  set_block_scale(out, half_e8m0_to_float(b.e));
  for (int j = 0; j < 16; ++j) {
    out.codes[j] = kCodes[b.qs[j] & 15];
    out.codes[j + 16] = kCodes[b.qs[j] >> 4];
  }
}

void decode_nvfp4(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockNVFP4>(block);
  for (int g = 0; g < 4; ++g) {
    out.scale[g] = half_ue4m3_to_float(b.d[g]);
    out.min[g] = 0.0f;
    for (int j = 0; j < 8; ++j) {
      out.codes[16 * g + j] = kCodes[b.qs[8 * g + j] & 15];
      out.codes[16 * g + j + 8] = kCodes[b.qs[8 * g + j] >> 4];
    }
  }
}

}  // namespace sterna::quant
