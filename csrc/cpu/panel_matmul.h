/// What all matmuls share: rows prepared as tiles, and ranges of weight panels multiplied by all of them.
#pragma once

#include <cstdint>

#include "cpu/steps.h"

namespace sterna::cpu {

/// Columns begin .. end - 1 of a row. Limits within a row are multiples of 256, and there are none in rows that have
/// one scale.
struct Columns {
  std::int64_t begin;
  std::int64_t end;
};

/// Columns of row `row` of `rows` into its tile: interleaved with its neighbours, and quantised where the weights are.
void prepare_row(const float* x, const TileSpace& tiles, const KernelTable& kernels, std::int64_t row,
                 std::int64_t rows, const Columns& columns);

/// How many panels make an item of multiply_items: many rows have panels unpacked side by side.
int panels_at_once(const KernelTable& kernels, std::int64_t rows);

/// Items begin .. end - 1 of a part against all `rows` rows.
void multiply_items(const MatmulPart& part, const TileSpace& tiles, const StepContext& context, std::int64_t begin,
                    std::int64_t end, std::int64_t rows);

/// Asks for the beginning of a panel.
void warm_panel(const PackedMatrix& w, std::int64_t panel);

}  // namespace sterna::cpu
