#include "engine/softmax.h"

#include <cmath>
#include <limits>

namespace sterna {
namespace {

constexpr std::size_t kLanes = 16;
constexpr std::uint32_t kExponent = 0x7F800000u;

}  // namespace

RowExtent row_extent(std::span<const float> row) {
  float max[kLanes];
  std::uint32_t bad[kLanes] = {};
  for (float& m : max) m = -std::numeric_limits<float>::infinity();
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    for (std::size_t j = 0; j < kLanes; ++j) {
      const float x = row[i + j];
      max[j] = x > max[j] ? x : max[j];
      bad[j] |= (std::bit_cast<std::uint32_t>(x) & kExponent) == kExponent ? 1u : 0u;
    }
  }
  for (; i < row.size(); ++i) {
    max[0] = row[i] > max[0] ? row[i] : max[0];
    bad[0] |= (std::bit_cast<std::uint32_t>(row[i]) & kExponent) == kExponent ? 1u : 0u;
  }
  RowExtent extent{max[0], bad[0] == 0};
  for (std::size_t j = 1; j < kLanes; ++j) {
    extent.max = max[j] > extent.max ? max[j] : extent.max;
    extent.finite = extent.finite && bad[j] == 0;
  }
  return extent;
}

std::ptrdiff_t find_first(std::span<const float> row, float value) {
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    std::uint32_t found = 0;
    for (std::size_t j = 0; j < kLanes; ++j) found |= row[i + j] == value ? 1u : 0u;
    if (found) break;
  }
  for (; i < row.size(); ++i) {
    if (row[i] == value) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

std::ptrdiff_t find_non_finite(std::span<const float> row) {
  for (std::size_t i = 0; i < row.size(); ++i) {
    if ((std::bit_cast<std::uint32_t>(row[i]) & kExponent) == kExponent) return static_cast<std::ptrdiff_t>(i);
  }
  return -1;
}

double sum_exp(std::span<const float> row, float max) {
  double lanes[kLanes] = {};
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    float terms[kLanes];
    for (std::size_t j = 0; j < kLanes; ++j) terms[j] = exp_nonpositive(row[i + j] - max);
    for (std::size_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(terms[j]);
  }
  for (std::size_t j = 0; i < row.size(); ++i, ++j) {
    lanes[j] += static_cast<double>(exp_nonpositive(row[i] - max));
  }
  for (std::size_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::size_t j = 0; j < width; ++j) lanes[j] += lanes[j + width];
  }
  return lanes[0];
}

double log_sum_exp(std::span<const float> row, float max) {
  return static_cast<double>(max) + std::log(sum_exp(row, max));
}

}  // namespace sterna
