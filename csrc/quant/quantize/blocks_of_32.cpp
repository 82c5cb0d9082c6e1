/// Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1; the byte maps are in formats/. Without importance they round exactly as gguf.quants
/// does: scale and minimum from the extremes, codes by truncation after adding a half (away from zero for Q8_0).
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/half.h"
#include "quant/quantize/codes.h"
#include "quant/quantize/quantizers.h"
#include "quant/quantize/searched_blocks.h"
#include "quant/quantize/store.h"

namespace sterna::quant {
namespace {

constexpr int kBlock = 32;

/// 1 / d. The reciprocal of a subnormal may be infinite; numpy makes NaN and infinite codes of that, and zeros of
/// those, on x86: a reciprocal of zero does the same, `lost` says that it must.
struct Reciprocal {
  float value;
  bool lost;
};
Reciprocal reciprocal(float d) {
  if (d == 0.0f) return {0.0f, false};
  const float inverse = 1.0f / d;
  return std::isinf(inverse) ? Reciprocal{0.0f, true} : Reciprocal{inverse, false};
}

/// The block's element of largest magnitude, the first of several.
float extreme_of(const float* x) {
  float low = x[0], high = x[0];
  for (int j = 1; j < kBlock; ++j) {
    low = x[j] < low ? x[j] : low;
    high = x[j] > high ? x[j] : high;
  }
  if (high != -low) return high > -low ? high : low;
  for (int j = 0; j < kBlock; ++j) {
    if (std::fabs(x[j]) == high) return x[j];
  }
  return high;
}

/// Codes 0 .. 2 kMost - 1 for a scale of extreme / -kMost; the scale.
template <int kMost>
std::uint16_t round_symmetric(const float* x, std::uint8_t* codes) {
  const float d = extreme_of(x) / -static_cast<float>(kMost);
  const auto [inverse, lost] = reciprocal(d);
  const float offset = lost ? 0.0f : static_cast<float>(kMost) + 0.5f;
  for (int j = 0; j < kBlock; ++j) {
    const int code = static_cast<int>(x[j] * inverse + offset);
    codes[j] = static_cast<std::uint8_t>(std::min(code, 2 * kMost - 1));
  }
  return float_to_half(d);
}

/// Codes 0 .. kLevels from minimum to maximum; scale and minimum.
template <int kLevels>
std::pair<std::uint16_t, std::uint16_t> round_affine(const float* x, std::uint8_t* codes) {
  float low = x[0], high = x[0];
  for (int j = 1; j < kBlock; ++j) {
    low = x[j] < low ? x[j] : low;
    high = x[j] > high ? x[j] : high;
  }
  const float d = (high - low) / static_cast<float>(kLevels);
  const auto [inverse, lost] = reciprocal(d);
  for (int j = 0; j < kBlock; ++j) {
    const int code = static_cast<int>((x[j] - low) * inverse + 0.5f);
    codes[j] = static_cast<std::uint8_t>(std::min(code, kLevels));
  }
  return {float_to_half(d), float_to_half(low)};
}

}  // namespace

void quantize_q8_0(const float* row, std::size_t k, const float*, std::uint8_t* out) {
  for (std::size_t i = 0; i < k; i += kBlock, out += 34) {
    const float* x = row + i;
    float most = 0.0f;
    for (int j = 0; j < kBlock; ++j) most = std::fabs(x[j]) > most ? std::fabs(x[j]) : most;
    const float d = most / 127.0f;
    const float inverse = reciprocal(d).value;
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
  const auto store = [&](std::uint16_t d, const std::uint8_t* codes) {
    store_u16(out, d);
    store_codes_of_32(codes, nullptr, out + 2);
    out += 18;
  };
  if (importance != nullptr) return search_symmetric_blocks<Codes4Bit>(row, k, importance, store);
  std::uint8_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) store(round_symmetric<8>(row + i, codes), codes);
}

void quantize_q5_0(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  const auto store = [&](std::uint16_t d, const std::uint8_t* codes) {
    store_u16(out, d);
    store_codes_of_32(codes, out + 2, out + 6);
    out += 22;
  };
  if (importance != nullptr) return search_symmetric_blocks<Codes5Bit>(row, k, importance, store);
  std::uint8_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) store(round_symmetric<16>(row + i, codes), codes);
}

void quantize_q4_1(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  const auto store = [&](std::uint16_t d, std::uint16_t m, const std::uint8_t* codes) {
    store_u16(out, d);
    store_u16(out + 2, m);
    store_codes_of_32(codes, nullptr, out + 4);
    out += 20;
  };
  if (importance != nullptr) return search_affine_blocks(row, k, importance, 15.0f, store);
  std::uint8_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) {
    const auto [d, m] = round_affine<15>(row + i, codes);
    store(d, m, codes);
  }
}

void quantize_q5_1(const float* row, std::size_t k, const float* importance, std::uint8_t* out) {
  const auto store = [&](std::uint16_t d, std::uint16_t m, const std::uint8_t* codes) {
    store_u16(out, d);
    store_u16(out + 2, m);
    store_codes_of_32(codes, out + 4, out + 8);
    out += 24;
  };
  if (importance != nullptr) return search_affine_blocks(row, k, importance, 31.0f, store);
  std::uint8_t codes[kBlock];
  for (std::size_t i = 0; i < k; i += kBlock) {
    const auto [d, m] = round_affine<31>(row + i, codes);
    store(d, m, codes);
  }
}

}  // namespace sterna::quant
