/// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1; the byte maps are in formats/. Without importance they round exactly as gguf.quants
/// does: scale and minimum from the extremes, codes by truncation after adding a half (away from zero for Q8_0).
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "base/half.h"
#include "quant/quantize/codes.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/searched_blocks.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 32;

/// What codes are computed with: y = x * inverse + offset.
struct Rounding {
  float inverse;
  float offset;
};

/// The reciprocal of a subnormal d may be infinite. numpy makes infinities and NaN of it and zeros of those (on x86): a
/// rounding that gives 0 whatever x is does the same.
Rounding rounding_by(float d, float offset) {
  if (d == 0.0f) return {0.0f, offset};
  const float inverse = 1.0f / d;
  return std::isinf(inverse) ? Rounding{0.0f, 0.0f} : Rounding{inverse, offset};
}

struct Range {
  float low;
  float high;
};

Range range_of(const float* x) {
  F4 low = load4(x), high = low;
  for (int j = 4; j < kBlock; j += 4) {
    const F4 v = load4(x + j);
    low = min4(v, low);
    high = max4(v, high);
  }
  return {std::min(std::min(low[0], low[1]), std::min(low[2], low[3])),
          std::max(std::max(high[0], high[1]), std::max(high[2], high[3]))};
}

/// The block's element of largest magnitude, the first of several.
float extreme_of(const float* x) {
  const auto [low, high] = range_of(x);
  if (high != -low) return high > -low ? high : low;
  for (int j = 0; j < kBlock; ++j) {
    if (std::fabs(x[j]) == high) return x[j];
  }
  return high;
}

/// Truncates (x - shift) * inverse + offset, at most `most`.
void round_codes(const float* x, float shift, Rounding by, float most, std::int32_t* codes) {
  for (int j = 0; j < kBlock; j += 4) {
    const F4 y = (load4(x + j) - splat(shift)) * splat(by.inverse) + splat(by.offset);
    const auto code = __builtin_convertvector(min4(y, splat(most)), I4);
    __builtin_memcpy(codes + j, &code, sizeof(code));
  }
}

/// Codes 0 .. 2 kMost - 1 for a scale of extreme / -kMost; the scale.
template <int kMost>
std::uint16_t round_symmetric(const float* x, std::int32_t* codes) {
  const float d = extreme_of(x) / -static_cast<float>(kMost);
  round_codes(x, 0.0f, rounding_by(d, kMost + 0.5f), 2 * kMost - 1, codes);
  return float_to_half(d);
}

/// Codes 0 .. kLevels from minimum to maximum; scale and minimum.
template <int kLevels>
std::pair<std::uint16_t, std::uint16_t> round_affine(const float* x, std::int32_t* codes) {
  const auto [low, high] = range_of(x);
  const float d = (high - low) / static_cast<float>(kLevels);
  round_codes(x, low, rounding_by(d, 0.5f), kLevels, codes);
  return {float_to_half(d), float_to_half(low)};
}

/// The codes of a block to `at`, and where the next block begins.
template <int bits, class Code>
std::uint8_t* store_codes(const Code* codes, std::uint8_t* at) {
  constexpr int fifth_bytes = bits == 5 ? 4 : 0;
  store_codes_of_32(codes, bits == 5 ? at : nullptr, at + fifth_bytes);
  return at + fifth_bytes + kBlock / 2;
}

/// Q4_0 and Q5_0.
template <int bits>
void quantize_symmetric(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  const auto store = [&](std::uint16_t d, const auto* codes) {
    store_u16(out, d);
    out = store_codes<bits>(codes, out + 2);
  };
  using Codes = std::conditional_t<bits == 4, Codes4Bit, Codes5Bit>;
  if (importance != nullptr) return search_symmetric_blocks<Codes>(row, k, importance, store);
  std::int32_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) store(round_symmetric<(1 << (bits - 1))>(row + i, codes), codes);
}

/// Q4_1 and Q5_1.
template <int bits>
void quantize_affine(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  constexpr int levels = (1 << bits) - 1;
  const auto store = [&](std::uint16_t d, std::uint16_t m, const auto* codes) {
    store_u16(out, d);
    store_u16(out + 2, m);
    out = store_codes<bits>(codes, out + 4);
  };
  if (importance != nullptr) return search_affine_blocks(row, k, importance, static_cast<float>(levels), store);
  std::int32_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) {
    const auto [d, m] = round_affine<levels>(row + i, codes);
    store(d, m, codes);
  }
}

}  // namespace

void quantize_q8_0(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; i += kBlock, out += 34) {
    const float* x = row + i;
    const auto [low, high] = range_of(x);
    const float d = std::fabs(std::max(-low, high)) / 127.0f;  // not -0
    const float inverse = rounding_by(d, 0.0f).inverse;
    std::int32_t codes[kBlock];
    for (int j = 0; j < kBlock; ++j) {
      // Halves go away from zero: the fraction, exact, is doubled and truncated.
      const float y = x[j] * inverse;
      const auto whole = static_cast<std::int32_t>(y);
      codes[j] = whole + static_cast<std::int32_t>(2.0f * (y - static_cast<float>(whole)));
    }
    store_u16(out, float_to_half(d));
    for (int j = 0; j < kBlock; ++j) out[2 + j] = static_cast<std::uint8_t>(codes[j]);
  }
}

void quantize_q4_0(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  quantize_symmetric<4>(row, k, importance, out);
}

void quantize_q5_0(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  quantize_symmetric<5>(row, k, importance, out);
}

void quantize_q4_1(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  quantize_affine<4>(row, k, importance, out);
}

void quantize_q5_1(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  quantize_affine<5>(row, k, importance, out);
}

}  // namespace sterna::quant
