/// From floats to the formats of GGUF files: one table, one quantiser each. Results are the same bytes on every
/// machine.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "quant/format.h"

namespace sterna {

/// Whether there is a quantiser for the format.
bool can_quantize(FormatId id);

/// Whether the format's quantiser makes use of importance.
bool takes_importance(FormatId id);

/// Writes `x`, rows of `k` weights, as `format` to `out`.
///
/// `importance` [k] weighs the squared error of a row's weights; empty: all count the same, and the bytes are those of
/// gguf.quants for every format that it writes. ArgumentError: no quantiser, k is not whole blocks, sizes that do not
/// match, importance that is negative or not finite. NumericError: a weight that is not finite or beyond what the
/// format can hold, named as `what`[`first` + its index].
void quantize(const Format& format, std::span<const float> x, std::uint64_t k, std::span<const float> importance,
              std::span<std::uint8_t> out, std::string_view what = "weights", std::uint64_t first = 0);

}  // namespace sterna
