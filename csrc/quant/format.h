/// Storage formats of tensors in GGUF files: one table, one decoder each. Kernels never see them; layouts are packed
/// from them.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace sterna {

/// GGML type ids, as written in the tensor table of a GGUF file (ggml.h, enum ggml_type).
enum class FormatId : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kI2_S = 36,  // bitnet.cpp's; in ggml a type that was removed (gguf/dialects.h)
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
  // Other meanings of the same ids, and other ways to read the same bytes. No file has these numbers.
  kI2_S_ARM = 0x10000,
  kQ2_0_G128,
  // 256 weights with one scale, of a tensor that has one scale throughout: what TQ2_0 would say.
  kI2_S_Ternary,
  kI2_S_ARM_Ternary,
  kQ1_0_Ternary,
  kQ2_0_Ternary,
  kQ2_0_G128_Ternary,
};

/// Ids below are those of files.
constexpr std::uint32_t kFirstVariant = 0x10000;

/// How a block's scales are kept.
enum class ScaleKind {
  kNone,   // plain numbers: F32, F16, BF16, F64, I8 ...
  kBlock,  // value = scale[g] * code + min[g], one float scale (and min) per group
  kSuper,  // value = (scale[0] * group_scale[g]) * code - min[0] * group_min[g], integer group scales
};

/// One native block, decoded to integer codes and scales; nothing is rounded.
struct DecodedBlock {
  std::int8_t codes[256];        // block_size of them; what a table format means, not its index
  float scale[16];               // kBlock: one per group; kSuper: scale[0]
  float min[16];                 // likewise; zero where the format has none
  std::int16_t group_scale[16];  // kSuper only; 1 where the format has none
  std::int16_t group_min[16];    // kSuper only; 0 where the format has none
};

struct Format {
  FormatId id;
  std::string_view name;     // upper case, as gguf spells it: "Q4_K"
  std::uint32_t block_size;  // elements
  std::uint32_t block_bytes;
  ScaleKind scales;
  std::uint32_t group_size;  // elements that share a scale (kBlock) or an integer scale (kSuper)
  bool has_min;
  /// Decodes one block of block_bytes bytes; any bytes are safe. Null where scales is kNone.
  void (*decode)(const std::uint8_t* block, DecodedBlock& out);
  /// Writes block_size floats, bit for bit what gguf.quants gives. Null for integer types, which are never weights.
  void (*dequantize)(const std::uint8_t* block, float* out);
  std::uint32_t tail_bytes = 0;  // behind a tensor's blocks; they begin with a float that multiplies all weights
  bool is_ternary = false;       // codes other than -1, 0 and 1 are faults
};

/// The table entry, or null for an id that GGUF does not have (or has removed).
const Format* find_format(std::uint32_t id);
/// By name, any case; null when there is none.
const Format* find_format(std::string_view name);
/// All formats, by id.
std::span<const Format> formats();

}  // namespace sterna
