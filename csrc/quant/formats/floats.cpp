/// F32, F16, BF16, F64: plain little-endian numbers, one per block (ggml.h, enum ggml_type).
#include <bit>

#include "quant/formats/bytes.h"
#include "quant/formats/formats.h"

namespace sterna::quant {

void dequantize_f32(const std::uint8_t* block, float* out) { *out = std::bit_cast<float>(load_u32(block)); }

void dequantize_f16(const std::uint8_t* block, float* out) { *out = load_half(block); }

void dequantize_bf16(const std::uint8_t* block, float* out) { *out = bfloat16_to_float(load_u16(block)); }

void dequantize_f64(const std::uint8_t* block, float* out) {
  const std::uint64_t bits = load_u32(block) | (static_cast<std::uint64_t>(load_u32(block + 4)) << 32);
  *out = static_cast<float>(std::bit_cast<double>(bits));
}

}  // namespace sterna::quant
