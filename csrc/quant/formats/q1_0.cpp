/// Q1_0: 128 weights of one bit with one scale.
///
/// 18 bytes, weight = bit ? d : -d:
///   0..1    d    f16
///   2..17   qs   bits; weight j is bit j % 8 of byte qs[j / 8]
/// Source: ggml-common.h (block_q1_0), ggml-quants.c (dequantize_row_q1_0); gguf 0.19 knows only the size.
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ1_0 {
  std::uint8_t d[2];
  std::uint8_t qs[16];
};
static_assert(sizeof(BlockQ1_0) == 18);

}  // namespace

void decode_q1_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ1_0>(block);
  set_block_scale(out, load_half(b.d));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) out.codes[8 * i + j] = static_cast<std::int8_t>(2 * ((b.qs[i] >> j) & 1) - 1);
  }
}

}  // namespace sterna::quant
