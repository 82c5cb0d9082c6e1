/// I2_S: ternary weights of 2 bits with one scale for the whole tensor.
///
/// A tensor of n weights has n / 4 bytes of codes and 32 more, of which the first four are its scale, an f32 (the
/// others are zero, random, or the scale again). weight = scale * (code - 1), codes 0 to 2; code 3 means nothing.
///
/// The codes of a byte are far apart, the first in its upper bits. How far depends on who wrote the file, and nothing
/// in it says which:
///   128 weights in 32 bytes: weight 32 g + j (g < 4, j < 32) is bits 6 - 2g, 7 - 2g of byte j. bitnet.cpp's Python
///     converters on every machine, and its quantiser on x86, and until November 2025 on ARM.
///   64 weights in 16 bytes: weight 16 g + j (g < 4, j < 16) is bits 6 - 2g, 7 - 2g of byte j. The quantiser on ARM
///   since.
/// Sources: github.com/microsoft/BitNet, src/ggml-bitnet-mad.cpp (quantize_i2_s), utils/convert-hf-to-gguf-bitnet.py.
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockI2_S {
  std::uint8_t qs[32];
};
static_assert(sizeof(BlockI2_S) == 32);

/// The scale stands behind the tensor: here it is one.
template <int kSpan>
void decode(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockI2_S>(block);
  set_block_scale(out, 1.0f);
  for (int span = 0; span < 32; span += kSpan) {
    for (int g = 0; g < 4; ++g) {
      for (int j = 0; j < kSpan; ++j) {
        out.codes[4 * span + kSpan * g + j] = static_cast<std::int8_t>(((b.qs[span + j] >> (6 - 2 * g)) & 3) - 1);
      }
    }
  }
}

}  // namespace

void decode_i2_s(const std::uint8_t* block, DecodedBlock& out) { decode<32>(block, out); }

void decode_i2_s_arm(const std::uint8_t* block, DecodedBlock& out) { decode<16>(block, out); }

}  // namespace sterna::quant
