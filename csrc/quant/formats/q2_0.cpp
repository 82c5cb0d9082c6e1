/// Q2_0: 64 weights of 2 bits with one scale, or 128 of them.
///
/// 18 bytes, weight = d * (code - 1), codes 0 to 3:
///   0..1    d    f16
///   2..17   qs   weight j is bits 2 (j % 4), 2 (j % 4) + 1 of byte qs[j / 4]
/// Sources: ggml-common.h (block_q2_0), ggml-quants.c (dequantize_row_q2_0); gguf 0.19 does not know it.
///
/// PrismML's fork writes the same with 128 weights a block, 34 bytes, under the same type id (Q2_0_G128 here).
/// Source: github.com/PrismML-Eng/llama.cpp, ggml-common.h (QK2_0 128).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

template <int kSize>
struct BlockQ2_0 {
  std::uint8_t d[2];
  std::uint8_t qs[kSize / 4];
};
static_assert(sizeof(BlockQ2_0<64>) == 18);
static_assert(sizeof(BlockQ2_0<128>) == 34);

template <int kSize>
void decode(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ2_0<kSize>>(block);
  set_block_scale(out, load_half(b.d));
  for (int i = 0; i < kSize / 4; ++i) {
    for (int j = 0; j < 4; ++j) out.codes[4 * i + j] = static_cast<std::int8_t>(((b.qs[i] >> (2 * j)) & 3) - 1);
  }
}

}  // namespace

void decode_q2_0(const std::uint8_t* block, DecodedBlock& out) { decode<64>(block, out); }

void decode_q2_0_g128(const std::uint8_t* block, DecodedBlock& out) { decode<128>(block, out); }

}  // namespace sterna::quant
