/// Looks into ternary and 1-bit tensors before they are loaded: whether one scale holds throughout, and which codes
/// occur.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <optional>

#include "gguf/gguf.h"

namespace sterna {

/// Whether scan_ternary knows a format: TQ1_0, TQ2_0, I2_S, Q1_0, Q2_0.
bool is_scannable(const Format& format);

struct TernaryScan {
  /// Weights by code: -1, 0, 1, and the fourth that a format of two bits has (2, or nothing: Format::is_ternary).
  std::array<std::uint64_t, 4> codes{};
  /// The first weight with the fourth code, counted through the tensor.
  std::optional<std::uint64_t> first_fourth;
  /// Bytes of TQ1_0 that stand for no five digits; decoders take them for others.
  std::uint64_t unused_bytes = 0;
  /// Of the scales that are numbers.
  float least_scale = std::numeric_limits<float>::infinity();
  float largest_scale = -std::numeric_limits<float>::infinity();
  std::uint64_t bad_scales = 0;  // NaN or infinite
  std::optional<std::uint64_t> first_bad_block;
  bool one_scale = true;
};

/// Reads the whole tensor. Throws ArgumentError for other formats; FileError.
TernaryScan scan_ternary(const GgufModel& model, const TensorInfo& tensor);

/// The format that a tensor is packed from: where all its blocks have one scale, and none the fourth code, that of
/// 256 ternary weights a block (Q2_0_TERNARY); otherwise its own. Reads Q1_0 and Q2_0 tensors up to the first reason
/// against. Throws FileError.
const Format& weight_format(const GgufModel& model, const TensorInfo& tensor);

}  // namespace sterna
