/// Sums of exponentials over a row of logits, in one fixed order, with an exponential of our own: the same bits
/// everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/exponential.h"

namespace sterna {

/// The largest value (-inf of an empty row), and whether all are finite.
struct RowExtent {
  float max;
  bool finite;
};
RowExtent row_extent(std::span<const float> row);

/// Index of the first element that equals `value`, or -1.
std::ptrdiff_t find_first(std::span<const float> row, float value);
/// Index of the first NaN or infinity, or -1.
std::ptrdiff_t find_non_finite(std::span<const float> row);

/// Sum of exp(x - max): sixteen lanes, then a fixed tree.
double sum_exp(std::span<const float> row, float max);

/// log(sum(exp(x))) of a row whose largest value is `max`. The logarithm is libm's, in double.
double log_sum_exp(std::span<const float> row, float max);

}  // namespace sterna
