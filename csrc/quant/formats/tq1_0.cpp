/// TQ1_0: 256 ternary weights with one scale, five to a byte.
///
/// 54 bytes, weight = d * (digit - 1):
///   0..47    qs   five digits each
///   48..51   qh   four digits each
///   52..53   d    f16
/// A byte q stands for the fraction q / 256; its first base-3 digits are the weights. Digit n is the whole part of
/// 3 * (q * 3^n mod 256) / 256.
/// Weight 32 n + j (n < 5, j < 32) is digit n of qs[j].
/// Weight 160 + 16 n + j (n < 5, j < 16) is digit n of qs[32 + j].
/// Weight 240 + 4 n + j (n < 4, j < 4) is digit n of qh[j].
/// Source: ggml-common.h (block_tq1_0), gguf.quants (TQ1_0).
#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {
namespace {

struct BlockTQ1_0 {
  std::uint8_t qs[48];
  std::uint8_t qh[4];
  std::uint8_t d[2];
};
static_assert(sizeof(BlockTQ1_0) == 54);

/// kDigits digits of each of kCount bytes, digit by digit.
template <int kDigits, int kCount>
inline void decode_digits(const std::uint8_t* bytes, std::int8_t* codes) {
  static constexpr unsigned kPower[5] = {1, 3, 9, 27, 81};
  for (int n = 0; n < kDigits; ++n) {
    for (int j = 0; j < kCount; ++j) {
      const unsigned rest = (bytes[j] * kPower[n]) & 255u;
      codes[kCount * n + j] = static_cast<std::int8_t>(static_cast<int>((rest * 3) >> 8) - 1);
    }
  }
}

}  // namespace

void decode_tq1_0(const std::uint8_t* block, DecodedBlock& out) {
  const auto b = load_block<BlockTQ1_0>(block);
  set_super_scale(out, load_half(b.d));
  out.group_scale[0] = 1;
  decode_digits<5, 32>(b.qs, out.codes);
  decode_digits<5, 16>(b.qs + 32, out.codes + 160);
  decode_digits<4, 4>(b.qh, out.codes + 240);
}

}  // namespace sterna::quant
