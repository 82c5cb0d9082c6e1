/// The short way from a file's blocks to a panel, for the formats that most models are made of. What it writes is what
/// pack_panel_by_codes writes, byte for byte.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace sterna::quant {

/// Packs the 16 rows that begin `row_bytes` apart at `rows` into a panel. Returns whether all scales, or all numbers of
/// a dense matrix, are finite.
using FastPack = bool (*)(const std::uint8_t* rows, std::int64_t row_bytes, std::int64_t k, std::uint8_t* panel);

/// Null where the format, or its number of columns, takes the long way.
FastPack fast_pack(const Format& format, std::int64_t k);

}  // namespace sterna::quant
