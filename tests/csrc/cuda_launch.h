/// What the tests of CUDA kernels share: a batch in memory, launches of one kernel, and random numbers.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cuda/arguments.h"
#include "cuda/device_table.h"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {

inline int& failures() {
  static int count = 0;
  return count;
}
inline int finish_test() {
  if (failures() > 0) std::printf("%d failures\n", failures());
  return failures() == 0 ? 0 : 1;
}
/// `tolerance` is relative to 1 and to the value, whichever is larger.
inline void expect_near(double actual, double expected, double tolerance, const char* what) {
  if (std::abs(actual - expected) <= tolerance * std::max(1.0, std::abs(expected))) return;
  if (++failures() <= 20) std::printf("%s: %.9g, expected %.9g\n", what, actual, expected);
}

/// Bit for bit; all NaNs are alike.
inline void expect_same(float actual, float expected, const char* what) {
  if (std::bit_cast<std::uint32_t>(actual) == std::bit_cast<std::uint32_t>(expected)) return;
  if (std::isnan(actual) && std::isnan(expected)) return;
  if (++failures() <= 20) std::printf("%s: %.9g, expected exactly %.9g\n", what, actual, expected);
}

inline std::vector<float> random_floats(std::int64_t count, unsigned seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = normal(generator);
  return values;
}

inline Rows rows(const std::vector<float>& values, std::int64_t stride, bool outputs = false) {
  return {const_cast<float*>(values.data()), stride, outputs};
}

/// A batch whose arrays a test may change before it launches; at first one sequence at positions 0, 1, ... whose rows
/// are all outputs.
struct TestBatch {
  std::vector<std::int32_t> counts, tokens, positions, sequences, last_rows, output_rows, largest, first_rows,
      encoded_sizes, is_long, adapters, given_rows, pages, tables, row_segments, segment_starts;
  std::vector<float> adapter_scales, given, received;
  std::vector<StateSegment> segments;
  std::int32_t num_pools = 1;

  explicit TestBatch(std::int32_t num_rows) : counts{num_rows, num_rows, 1} {
    for (std::int32_t row = 0; row < num_rows; ++row) {
      tokens.push_back(row);
      positions.push_back(row);
      output_rows.push_back(row);
    }
    sequences.assign(static_cast<std::size_t>(num_rows), 0);
    last_rows.assign(static_cast<std::size_t>(num_rows), num_rows - 1);
    given_rows.assign(static_cast<std::size_t>(num_rows), -1);
    largest.assign(static_cast<std::size_t>(num_rows), 0);
    row_segments.assign(static_cast<std::size_t>(num_rows), 0);
    first_rows = encoded_sizes = is_long = tables = {0};
    adapters = {-1};
    adapter_scales = {1.0f};
    segment_starts = {0, 0};
  }

  /// For grids of up to `spare` more rows than there are: kernels must look up how many there are.
  template <class Arguments>
  void launch(Kernel kernel, const Arguments& arguments, std::int32_t spare = 2) const {
    const DeviceBatch batch = {counts.data(),         tokens.data(),     positions.data(),
                               sequences.data(),      last_rows.data(),  output_rows.data(),
                               largest.data(),        first_rows.data(), encoded_sizes.data(),
                               is_long.data(),        adapters.data(),   adapter_scales.data(),
                               given_rows.data(),     given.data(),      pages.data(),
                               tables.data(),         num_pools,         row_segments.data(),
                               segment_starts.data(), segments.data(),   received.data()};
    const Launch launch = {nullptr, &batch, counts[0] + spare, counts[1] + spare, counts[2] + spare};
    if (kLaunchers[static_cast<int>(kernel)](&arguments, launch) != 0) {
      std::printf("kernel %d was not launched\n", static_cast<int>(kernel));
      std::exit(1);
    }
  }
};

}  // namespace sterna::cuda
