/// The table of formats. Ids and sizes are ggml's (ggml.h, enum ggml_type; gguf.constants, GGML_QUANT_SIZES). Q8_1 and
/// Q8_K are missing on purpose: they are ggml's activations and never stand in a file.
#include "quant/format.h"

#include <algorithm>

#include "quant/formats/dequantize.h"
#include "quant/formats/formats.h"
#include "quant/formats/joined.h"

namespace sterna {
namespace {

using namespace quant;

constexpr bool kMin = true;
constexpr bool kNoMin = false;

using Dequantize = void (*)(const std::uint8_t*, float*);

consteval Format plain(FormatId id, std::string_view name, std::uint32_t bytes, Dequantize dequantize = nullptr) {
  return {id, name, 1, bytes, ScaleKind::kNone, 1, false, nullptr, dequantize};
}

template <auto kDecode, std::uint32_t kBlockSize, std::uint32_t kGroupSize, bool kHasMin>
consteval Format block(FormatId id, std::string_view name, std::uint32_t bytes) {
  return {id,
          name,
          kBlockSize,
          bytes,
          ScaleKind::kBlock,
          kGroupSize,
          kHasMin,
          kDecode,
          dequantize_block<kDecode, kBlockSize, kGroupSize, kHasMin>};
}

/// Super-blocks are all of 256 weights.
template <auto kDecode, std::uint32_t kGroupSize, bool kHasMin>
consteval Format super(FormatId id, std::string_view name, std::uint32_t bytes) {
  return {id,
          name,
          256,
          bytes,
          ScaleKind::kSuper,
          kGroupSize,
          kHasMin,
          kDecode,
          dequantize_super<kDecode, 256, kGroupSize, kHasMin>};
}

/// A format whose tensors have one scale, behind their blocks.
consteval Format with_tail(Format format) {
  format.tail_bytes = 32;
  format.is_ternary = true;
  return format;
}

/// 256 weights of a format with smaller blocks, all of one scale.
template <auto kDecode, std::uint32_t kBlockSize, std::uint32_t kBlockBytes>
consteval Format joined(FormatId id, std::string_view name) {
  Format format = super<decode_joined<kDecode, kBlockSize, kBlockBytes>, 256, kNoMin>(id, name, 0);
  format.block_bytes = 256 / kBlockSize * kBlockBytes;
  format.is_ternary = true;
  return format;
}

constexpr Format kFormats[] = {
    plain(FormatId::kF32, "F32", 4, dequantize_f32),
    plain(FormatId::kF16, "F16", 2, dequantize_f16),
    block<decode_q4_0, 32, 32, kNoMin>(FormatId::kQ4_0, "Q4_0", 18),
    block<decode_q4_1, 32, 32, kMin>(FormatId::kQ4_1, "Q4_1", 20),
    block<decode_q5_0, 32, 32, kNoMin>(FormatId::kQ5_0, "Q5_0", 22),
    block<decode_q5_1, 32, 32, kMin>(FormatId::kQ5_1, "Q5_1", 24),
    block<decode_q8_0, 32, 32, kNoMin>(FormatId::kQ8_0, "Q8_0", 34),
    super<decode_q2_k, 16, kMin>(FormatId::kQ2_K, "Q2_K", 84),
    super<decode_q3_k, 16, kNoMin>(FormatId::kQ3_K, "Q3_K", 110),
    super<decode_q4_k, 32, kMin>(FormatId::kQ4_K, "Q4_K", 144),
    super<decode_q5_k, 32, kMin>(FormatId::kQ5_K, "Q5_K", 176),
    super<decode_q6_k, 16, kNoMin>(FormatId::kQ6_K, "Q6_K", 210),
    super<decode_iq2_xxs, 32, kNoMin>(FormatId::kIQ2_XXS, "IQ2_XXS", 66),
    super<decode_iq2_xs, 16, kNoMin>(FormatId::kIQ2_XS, "IQ2_XS", 74),
    super<decode_iq3_xxs, 32, kNoMin>(FormatId::kIQ3_XXS, "IQ3_XXS", 98),
    super<decode_iq1_s, 32, kNoMin>(FormatId::kIQ1_S, "IQ1_S", 50),
    block<decode_iq4_nl, 32, 32, kNoMin>(FormatId::kIQ4_NL, "IQ4_NL", 18),
    super<decode_iq3_s, 32, kNoMin>(FormatId::kIQ3_S, "IQ3_S", 110),
    super<decode_iq2_s, 16, kNoMin>(FormatId::kIQ2_S, "IQ2_S", 82),
    super<decode_iq4_xs, 32, kNoMin>(FormatId::kIQ4_XS, "IQ4_XS", 136),
    plain(FormatId::kI8, "I8", 1),
    plain(FormatId::kI16, "I16", 2),
    plain(FormatId::kI32, "I32", 4),
    plain(FormatId::kI64, "I64", 8),
    plain(FormatId::kF64, "F64", 8, dequantize_f64),
    super<decode_iq1_m, 16, kNoMin>(FormatId::kIQ1_M, "IQ1_M", 56),
    plain(FormatId::kBF16, "BF16", 2, dequantize_bf16),
    super<decode_tq1_0, 256, kNoMin>(FormatId::kTQ1_0, "TQ1_0", 54),
    super<decode_tq2_0, 256, kNoMin>(FormatId::kTQ2_0, "TQ2_0", 66),
    with_tail(block<decode_i2_s, 128, 128, kNoMin>(FormatId::kI2_S, "I2_S", 32)),
    block<decode_mxfp4, 32, 32, kNoMin>(FormatId::kMXFP4, "MXFP4", 17),
    block<decode_nvfp4, 64, 16, kNoMin>(FormatId::kNVFP4, "NVFP4", 36),
    block<decode_q1_0, 128, 128, kNoMin>(FormatId::kQ1_0, "Q1_0", 18),
    block<decode_q2_0, 64, 64, kNoMin>(FormatId::kQ2_0, "Q2_0", 18),
    with_tail(block<decode_i2_s_arm, 128, 128, kNoMin>(FormatId::kI2_S_ARM, "I2_S_ARM", 32)),
    block<decode_q2_0_g128, 128, 128, kNoMin>(FormatId::kQ2_0_G128, "Q2_0_G128", 34),
    with_tail(joined<decode_i2_s, 128, 32>(FormatId::kI2_S_Ternary, "I2_S_TERNARY")),
    with_tail(joined<decode_i2_s_arm, 128, 32>(FormatId::kI2_S_ARM_Ternary, "I2_S_ARM_TERNARY")),
    joined<decode_q1_0, 128, 18>(FormatId::kQ1_0_Ternary, "Q1_0_TERNARY"),
    joined<decode_q2_0, 64, 18>(FormatId::kQ2_0_Ternary, "Q2_0_TERNARY"),
    joined<decode_q2_0_g128, 128, 34>(FormatId::kQ2_0_G128_Ternary, "Q2_0_G128_TERNARY"),
};

static_assert(std::ranges::adjacent_find(kFormats, std::ranges::greater_equal{}, &Format::id) == std::end(kFormats),
              "by id, each id once");

constexpr char upper(char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; }

}  // namespace

const Format* find_format(std::uint32_t id) {
  const auto found = std::ranges::find(kFormats, static_cast<FormatId>(id), &Format::id);
  return found == std::end(kFormats) ? nullptr : found;
}

const Format* find_format(std::string_view name) {
  const auto found = std::ranges::find_if(
      kFormats, [name](const Format& format) { return std::ranges::equal(name, format.name, {}, upper); });
  return found == std::end(kFormats) ? nullptr : found;
}

std::span<const Format> formats() { return kFormats; }

}  // namespace sterna
