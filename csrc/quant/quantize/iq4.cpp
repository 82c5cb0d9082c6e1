/// IQ4_NL and IQ4_XS; the byte maps are in formats/iq4_nl.cpp.
#include <cstring>

#include "quant/quantize/codes.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/searched_blocks.h"
#include "quant/quantize/store.h"
#include "quant/quantize/symmetric_block.h"

namespace sterna::quant {

void quantize_iq4_nl(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  search_symmetric_blocks<CodesByTable>(row, k, importance, [&](std::uint16_t d, const std::uint8_t* codes) {
    store_u16(out, d);
    store_codes_of_32(codes, nullptr, out + 2);
    out += 18;
  });
}

void quantize_iq4_xs(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  for_each_slab<8>(row, k, importance, [&](const auto& slab) {
    const auto fit = fit_symmetric<CodesByTable, 32>(slab);
    std::uint8_t codes[256];
    fit.codes(codes);
    store_u16(out, fit.d());
    unsigned high = 0;
    std::memset(out + 4, 0, 4);
    for (int g = 0; g < 8; ++g) {
      const int scale = fit.scale(g) + 32;
      high |= static_cast<unsigned>(scale >> 4) << (2 * g);
      out[4 + g / 2] = static_cast<std::uint8_t>(out[4 + g / 2] | ((scale & 15) << (4 * (g % 2))));
      store_codes_of_32(codes + 32 * g, nullptr, out + 8 + 16 * g);
    }
    store_u16(out + 2, static_cast<std::uint16_t>(high));
    out += 136;
  });
}

}  // namespace sterna::quant
