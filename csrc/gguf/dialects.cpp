/// Sources: ggml.h (enum ggml_type) of ggml-org/llama.cpp and of the forks of microsoft/BitNet (I2_S 36, I8_S 37, TL1
/// 38, TL2 39; ggml_nbytes for their sizes) and PrismML (Q2_0 with 128 weights a block as 42, PQ2_0 142, PTQ1_0 143).
#include "gguf/dialects.h"

#include <algorithm>
#include <optional>

#include "base/checked.h"

namespace sterna {
namespace {

const Format* format_of(FormatId id) { return find_format(static_cast<std::uint32_t>(id)); }

/// Bytes of a tensor in blocks; nothing where they do not divide its rows, or pass 2^64.
std::optional<std::uint64_t> block_bytes(const TensorExtent& tensor, std::uint64_t block, std::uint64_t bytes) {
  if (tensor.columns % block != 0) return std::nullopt;
  return checked_mul(tensor.elements / block, bytes);
}

std::uint64_t padded(std::uint64_t bytes, std::uint32_t alignment) {
  return (bytes + alignment - 1) / alignment * alignment;
}

bool fits(const std::optional<std::uint64_t>& bytes, const TensorExtent& tensor) {
  return bytes && *bytes <= tensor.room;
}

/// Whether the room of a tensor is what `bytes` take with the padding behind them.
bool fills(const std::optional<std::uint64_t>& bytes, const TensorExtent& tensor, std::uint32_t alignment) {
  return fits(bytes, tensor) && padded(tensor.room, alignment) == padded(*bytes, alignment);
}

/// IQ4_NL as it was repacked for a CPU, in the ids from 36 to 38, until ggml removed them: 18 bytes for 32 weights.
bool is_repacked_iq4_nl(const TensorExtent& tensor, std::uint32_t alignment, const Writer& writer) {
  const auto own = block_bytes(tensor, 32, 18);
  return !writer.is_bitnet && fits(own, tensor) && !fills(tensor.elements / 4, tensor, alignment) &&
         !fills(tensor.elements / 4 + 32, tensor, alignment);
}

/// TL2 has five bits for three weights but for the last 256 columns, which have two each; 32 bytes may follow. The
/// first versions took as much as I2_S.
bool is_tl2(const TensorExtent& tensor, std::uint32_t alignment) {
  if (fills(tensor.elements / 4 + 32, tensor, alignment)) return true;
  if (tensor.columns <= 256 || tensor.elements > (std::uint64_t{1} << 40)) return false;
  const std::uint64_t rows = tensor.elements / tensor.columns;
  const std::uint64_t codes = (tensor.columns - 256) * rows / 3 * 5 / 8 + 256 * rows / 2 * 4 / 8;
  return fills(codes, tensor, alignment) || fills(padded(codes, 32) + 32, tensor, alignment);
}

TypeMeaning repacked(const std::string& name) {
  return {nullptr, name + ", which was removed from GGUF (repack from IQ4_NL)"};
}

TypeMeaning table_lookup(const std::string& name) {
  return {nullptr,
          name +
              " of bitnet.cpp, which is arranged for one kind of CPU; make an I2_S or TQ2_0 file from the original "
              "model: sterna convert MODEL_DIR OUT.gguf --type I2_S, or bitnet.cpp's setup_env.py -q i2_s",
          true};
}

TypeMeaning choose(const TensorExtent& tensor, std::uint32_t alignment, const Writer& writer) {
  switch (tensor.type) {
    case 36:
      if (is_repacked_iq4_nl(tensor, alignment, writer)) return repacked("IQ4_NL_4_4");
      return {format_of(writer.order == I2sOrder::kArm ? FormatId::kI2_S_ARM : FormatId::kI2_S)};
    case 37:
      if (!writer.is_bitnet) return repacked("IQ4_NL_4_8");
      return {nullptr, "I8_S of bitnet.cpp, which is for activations and never stored"};
    case 38:
      return is_repacked_iq4_nl(tensor, alignment, writer) ? repacked("IQ4_NL_8_8") : table_lookup("TL1");
    default: {  // 39
      const bool is_mxfp4 = fits(block_bytes(tensor, 32, 17), tensor);
      if (!is_mxfp4 && (writer.is_bitnet || is_tl2(tensor, alignment))) return table_lookup("TL2");
      return {format_of(FormatId::kMXFP4)};
    }
  }
}

}  // namespace

bool is_ambiguous_type(std::uint32_t type) { return (type >= 36 && type <= 39) || type == 42; }

TypeMeaning meaning_of(std::uint32_t type) {
  switch (type) {
    case 4:
      return {nullptr, "Q4_2, which was removed from GGUF"};
    case 5:
      return {nullptr, "Q4_3, which was removed from GGUF"};
    case 9:
      return {nullptr, "Q8_1, which is for activations and never stored"};
    case 15:
      return {nullptr, "Q8_K, which is for activations and never stored"};
    case 31:
      return {nullptr, "Q4_0_4_4, which was removed from GGUF (repack from Q4_0)"};
    case 32:
      return {nullptr, "Q4_0_4_8, which was removed from GGUF (repack from Q4_0)"};
    case 33:
      return {nullptr, "Q4_0_8_8, which was removed from GGUF (repack from Q4_0)"};
    case 142:
      return {nullptr, "PQ2_0 of PrismML's llama.cpp; take the model's Q2_0 file", true};
    case 143:
      return {nullptr, "PTQ1_0 of PrismML's llama.cpp; take the model's Q2_0 file", true};
    default:
      break;
  }
  const Format* format = type < kFirstVariant ? find_format(type) : nullptr;
  if (format == nullptr) return {nullptr, "which is unknown"};
  return {format};
}

std::vector<TypeMeaning> choose_formats(const std::vector<TensorExtent>& tensors, std::uint32_t alignment,
                                        const Writer& writer) {
  // Blocks of 128 take less room than blocks of 64: where a tensor has not the room for these, all are those.
  bool some_too_large = false;
  bool all_grouped_by_128 = true;
  for (const TensorExtent& tensor : tensors) {
    if (tensor.type != 42) continue;
    some_too_large = some_too_large || !fits(block_bytes(tensor, 64, 18), tensor);
    all_grouped_by_128 = all_grouped_by_128 && fills(block_bytes(tensor, 128, 34), tensor, alignment);
  }
  const FormatId q2_0 = some_too_large && all_grouped_by_128 ? FormatId::kQ2_0_G128 : FormatId::kQ2_0;
  std::vector<TypeMeaning> meanings;
  meanings.reserve(tensors.size());
  for (const TensorExtent& tensor : tensors) {
    meanings.push_back(tensor.type == 42 ? TypeMeaning{format_of(q2_0)} : choose(tensor, alignment, writer));
  }
  return meanings;
}

}  // namespace sterna
