/// Q8_0: 32 weights of 8 bits with one scale.
///
/// 34 bytes, weight = d * code:
///   0..1    d    f16
///   2..33   qs   signed bytes, in order
/// Source: ggml-common.h (block_q8_0), gguf.quants (Q8_0).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockQ8_0 {
  std::uint8_t d[2];
  std::int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

}  // namespace

void decode_q8_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockQ8_0>(block);
  set_block_scale(out, load_half(b.d));
  std::memcpy(out.codes, b.qs, sizeof(b.qs));
}

}  // namespace sterna::quant
