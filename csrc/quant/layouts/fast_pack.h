/// The short way from a file's blocks to a panel, for the formats that most models are made of. What it writes is what
/// pack_panel_by_codes writes, byte for byte.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace sterna::quant {

/// Packs the 16 rows that begin `row_bytes` apart at `rows` into a panel; not the scales of formats that have one
/// behind their tensors. Returns whether all scales, or all numbers of a dense matrix, are finite, and all codes valid.
using FastPack = bool (*)(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel);

/// Null where the format, or its number of columns, takes the long way.
FastPack fast_pack(const Format& format, std::int64_t k);
/// The same for ternary and 1-bit formats alone.
FastPack fast_pack_ternary(const Format& format);

}  // namespace sterna::quant
