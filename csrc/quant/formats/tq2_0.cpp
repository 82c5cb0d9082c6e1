/// TQ2_0: 256 ternary weights of 2 bits with one scale.
///
/// 66 bytes, weight = d * (code - 1):
///   0..63    qs   two bits each
///   64..65   d    f16
/// Weight 128 h + 32 s + j (h < 2, s < 4, j < 32) is bits 2s, 2s + 1 of byte qs[32 h + j]. Quantisers never write
/// code 3, but a file may hold it: it means 2 d.
/// Source: ggml-common.h (block_tq2_0), gguf.quants (TQ2_0).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockTQ2_0 {
  std::uint8_t qs[64];
  std::uint8_t d[2];
};
static_assert(sizeof(BlockTQ2_0) == 66);

}  // namespace

void decode_tq2_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockTQ2_0>(block);
  set_super_scale(out, load_half(b.d));
  out.group_scale[0] = 1;
  for (int h = 0; h < 2; ++h) {
    for (int s = 0; s < 4; ++s) {
      for (int j = 0; j < 32; ++j) {
        out.codes[128 * h + 32 * s + j] = static_cast<std::int8_t>(((b.qs[32 * h + j] >> (2 * s)) & 3) - 1);
      }
    }
  }
}

}  // namespace sterna::quant
