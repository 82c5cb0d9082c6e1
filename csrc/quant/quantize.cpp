#include "quant/quantize.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/float_mode.h"
#include "quant/quantize/quantizers.h"

namespace sterna {
namespace {

using namespace quant;

struct Quantizer {
  FormatId id;
  QuantizeRow* row;
  float largest;  // magnitude of a weight
  bool takes_importance;
};

constexpr float kLargestHalf = 65504.0f;
constexpr float kLargestBf16 = 0x1.FEp127f;

constexpr Quantizer kQuantizers[] = {
    {FormatId::kF32, quantize_f32, 0x1.FFFFFEp127f, false},
    {FormatId::kF16, quantize_f16, kLargestHalf, false},
    {FormatId::kQ4_0, quantize_q4_0, kLargestHalf * 7, true},
    {FormatId::kQ4_1, quantize_q4_1, kLargestHalf, true},
    {FormatId::kQ5_0, quantize_q5_0, kLargestHalf * 15, true},
    {FormatId::kQ5_1, quantize_q5_1, kLargestHalf, true},
    {FormatId::kQ8_0, quantize_q8_0, kLargestHalf * 127, false},
    {FormatId::kQ2_K, quantize_q2_k, kLargestHalf * 15, true},
    {FormatId::kQ3_K, quantize_q3_k, kLargestHalf * 31 * 3, true},
    {FormatId::kQ4_K, quantize_q4_k, kLargestHalf * 63, true},
    {FormatId::kQ5_K, quantize_q5_k, kLargestHalf * 63, true},
    {FormatId::kQ6_K, quantize_q6_k, kLargestHalf * 127 * 31, true},
    {FormatId::kIQ4_NL, quantize_iq4_nl, kLargestHalf * 113, true},
    {FormatId::kIQ4_XS, quantize_iq4_xs, kLargestHalf * 31 * 113, true},
    {FormatId::kBF16, quantize_bf16, kLargestBf16, false},
    {FormatId::kTQ1_0, quantize_tq1_0, kLargestHalf, false},
    {FormatId::kTQ2_0, quantize_tq2_0, kLargestHalf, false},
    // The largest power of two that leaves room for the largest code.
    {FormatId::kMXFP4, quantize_mxfp4, 0x1p127f, false},
};

const Quantizer* find_quantizer(FormatId id) {
  const auto found = std::ranges::find(kQuantizers, id, &Quantizer::id);
  return found == std::end(kQuantizers) ? nullptr : found;
}

std::string number(float x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(x));
  return text;
}

/// Bits of a magnitude order like the magnitudes, infinity and NaN above all. Signed, because SSE2 compares no others.
std::int32_t magnitude_bits(float x) { return std::bit_cast<std::int32_t>(x) & 0x7FFFFFFF; }

void check_weights(std::span<const float> x, float largest, std::string_view format, std::string_view what,
                   std::uint64_t first) {
  const auto limit = std::bit_cast<std::int32_t>(largest);
  std::int32_t beyond = 0;
  for (const float value : x) beyond |= limit - magnitude_bits(value);
  if (beyond >= 0) return;
  const auto bad = std::ranges::find_if(x, [limit](float value) { return magnitude_bits(value) > limit; });
  const std::string place =
      std::string(what) + "[" + std::to_string(first + static_cast<std::uint64_t>(bad - x.begin())) + "]";
  if (!std::isfinite(*bad)) throw NumericError(place + " is " + number(*bad) + ": weights must be finite");
  throw NumericError(place + " is " + number(*bad) + ": the largest magnitude in " + std::string(format) + " is " +
                     number(largest));
}

/// Importance with a mean of one, so that no square of a weight times it leaves the range of floats.
std::vector<float> normalised(std::span<const float> importance) {
  double sum = 0.0;
  for (std::size_t i = 0; i < importance.size(); ++i) {
    const float value = importance[i];
    if (!(value >= 0.0f && std::isfinite(value))) {
      throw ArgumentError("importance[" + std::to_string(i) + "] is " + number(value) +
                          ": it must be finite and not negative");
    }
    sum += static_cast<double>(value);
  }
  if (sum == 0.0) return {};
  std::vector<float> result(importance.size());
  const double scale = static_cast<double>(importance.size()) / sum;
  for (std::size_t i = 0; i < importance.size(); ++i) {
    result[i] = static_cast<float>(static_cast<double>(importance[i]) * scale);
  }
  return result;
}

}  // namespace

bool can_quantize(FormatId id) { return find_quantizer(id) != nullptr; }

bool takes_importance(FormatId id) {
  const Quantizer* quantizer = find_quantizer(id);
  return quantizer != nullptr && quantizer->takes_importance;
}

void quantize(const Format& format, std::span<const float> x, std::uint64_t k, std::span<const float> importance,
              std::span<std::uint8_t> out, std::string_view what, std::uint64_t first) {
  const Quantizer* quantizer = find_quantizer(format.id);
  const std::string name(format.name);
  if (quantizer == nullptr) throw ArgumentError("format: there is no quantiser for " + name);
  if (k == 0 || k % format.block_size != 0) {
    throw ArgumentError(std::string(what) + ": rows of " + std::to_string(k) + " weights are not whole blocks of " +
                        name + " (" + std::to_string(format.block_size) + " weights)");
  }
  if (x.size() % k != 0) {
    throw ArgumentError(std::string(what) + ": " + std::to_string(x.size()) + " weights are not whole rows of " +
                        std::to_string(k));
  }
  if (!importance.empty() && importance.size() != k) {
    throw ArgumentError("importance: " + std::to_string(importance.size()) + " values for rows of " +
                        std::to_string(k) + " weights");
  }
  const std::uint64_t row_bytes = k / format.block_size * format.block_bytes;
  const std::uint64_t rows = x.size() / k;
  if (out.size() != rows * row_bytes) {
    throw ArgumentError("out: " + std::to_string(out.size()) + " bytes, needed are " +
                        std::to_string(rows * row_bytes));
  }
  const FloatMode mode;
  check_weights(x, quantizer->largest, format.name, what, first);
  const std::vector<float> weights = quantizer->takes_importance ? normalised(importance) : std::vector<float>();
  for (std::uint64_t i = 0; i < rows; ++i) {
    quantizer->row(x.data() + i * k, static_cast<std::size_t>(k), weights.empty() ? nullptr : weights.data(),
                   out.data() + i * row_bytes);
  }
}

}  // namespace sterna
