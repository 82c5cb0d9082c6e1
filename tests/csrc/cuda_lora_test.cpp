/// The adapter kernels against their definition in double, and rows alone against the same rows in company.
#include <cmath>
#include <vector>

#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

constexpr std::int32_t kSpare = 2;
constexpr std::int32_t kAdapter = 3;
constexpr float kFactor = 0.75f;

std::size_t at(std::int64_t row, std::int64_t stride, std::int64_t i) {
  return static_cast<std::size_t>(row * stride + i);
}

struct Case {
  std::int64_t k, n, rank;
  std::vector<float> x, y, a, b;  // x and y of all rows
  std::int64_t x_stride = k + 3, y_stride = n + 5;

  Case(std::int64_t rows, std::int64_t k, std::int64_t n, std::int64_t rank)
      : k(k),
        n(n),
        rank(rank),
        x(random_floats(rows * (k + 3), 1)),
        y(random_floats(rows * (n + 5), 2)),
        a(random_floats(rank * k, 3)),
        b(random_floats(rank * n, 4)) {}

  /// y after the kernels, the rows being those of `batch` from row `first` on.
  std::vector<float> run(const TestBatch& batch, bool outputs, std::int64_t first = 0) const {
    std::vector<float> result = y;
    const std::int64_t rows = batch.counts[outputs ? 1 : 0];
    std::vector<float> products(static_cast<std::size_t>(rows * rank), NAN);
    LoraArguments arguments{};
    arguments.x = {const_cast<float*>(x.data()) + first * x_stride, x_stride, outputs};
    arguments.y = {result.data() + first * y_stride, y_stride, outputs};
    arguments.a = a.data();
    arguments.b = b.data();
    arguments.k = k;
    arguments.n = n;
    arguments.rank = rank;
    arguments.adapter = kAdapter;
    arguments.factor = kFactor;
    arguments.products = products.data();
    batch.launch(Kernel::kLora, arguments, kSpare);
    return result;
  }
};

/// Sequences with this adapter (two scales), with another one and none take turns; `outputs`: every other token's row,
/// the last one first.
void check_lora(std::int32_t rows, bool outputs, std::int64_t k, std::int64_t n, std::int64_t rank) {
  const std::vector<std::int32_t> adapters = {-1, kAdapter, kAdapter - 1, kAdapter};
  const std::vector<float> scales = {9.0f, 1.25f, 9.0f, -0.5f};
  const std::int32_t tokens = outputs ? 2 * rows : rows;
  TestBatch batch(tokens);
  batch.counts = {tokens, rows, 4};
  batch.adapters = adapters;
  batch.adapter_scales = scales;
  batch.first_rows = batch.encoded_sizes = batch.is_long = batch.tables = {0, 0, 0, 0};
  for (std::int32_t row = 0; row < tokens; ++row) batch.sequences[static_cast<std::size_t>(row)] = row * row / 3 % 4;
  for (std::int32_t i = 0; i < rows; ++i)
    batch.output_rows[static_cast<std::size_t>(i)] = tokens - 1 - (outputs ? 2 : 1) * i;

  Case c(rows + kSpare, k, n, rank);
  const auto sequence_of = [&](std::int64_t row) {
    return static_cast<std::size_t>(
        batch.sequences[static_cast<std::size_t>(outputs ? batch.output_rows[static_cast<std::size_t>(row)] : row)]);
  };
  // What others compute must not touch those that use the adapter, nor the adapter the others.
  for (std::int64_t row = 0; row < rows; ++row) {
    if (adapters[sequence_of(row)] != kAdapter) c.x[at(row, c.x_stride, 0)] = NAN;
  }
  const std::vector<float> result = c.run(batch, outputs);
  int runs_alone = 0;
  for (std::int64_t row = 0; row < rows + kSpare; ++row) {
    const bool uses = row < rows && adapters[sequence_of(row)] == kAdapter;
    for (std::int64_t i = 0; i < c.y_stride; ++i) {
      if (!uses || i >= n)
        expect_same(result[at(row, c.y_stride, i)], c.y[at(row, c.y_stride, i)], "not the adapter's");
    }
    if (!uses) continue;
    std::vector<double> expected(static_cast<std::size_t>(n)), sizes(expected.size());
    for (std::int64_t j = 0; j < rank; ++j) {
      double product = 0, size = 0;
      for (std::int64_t i = 0; i < k; ++i) {
        const double term = double{c.x[at(row, c.x_stride, i)]} * c.a[at(j, k, i)];
        product += term;
        size += std::abs(term);
      }
      for (std::int64_t i = 0; i < n; ++i) {
        const double factor = double{c.b[at(j, n, i)]} * scales[sequence_of(row)] * kFactor;
        expected[static_cast<std::size_t>(i)] += product * factor;
        sizes[static_cast<std::size_t>(i)] += size * std::abs(factor);
      }
    }
    for (std::int64_t i = 0; i < n; ++i) {
      const auto column = static_cast<std::size_t>(i);
      const double wanted = expected[column] + c.y[at(row, c.y_stride, i)];
      const double difference = std::abs(result[at(row, c.y_stride, i)] - wanted);
      if (!(difference <= 1e-6 * (sizes[column] + 1))) expect_near(result[at(row, c.y_stride, i)], wanted, 0, "lora");
    }
    if (++runs_alone > 2) continue;
    TestBatch alone(1);
    alone.adapters = {kAdapter};
    alone.adapter_scales = {scales[sequence_of(row)]};
    const std::vector<float> same = c.run(alone, false, row);
    for (std::int64_t i = 0; i < n; ++i) {
      expect_same(same[at(row, c.y_stride, i)], result[at(row, c.y_stride, i)], "lora alone");
    }
  }
}

}  // namespace

int main() {
  for (const std::int32_t rows : {1, 4, 21}) {
    for (const bool outputs : {false, true}) {
      check_lora(rows, outputs, 1, 1, 1);
      check_lora(rows, outputs, 31, 33, 5);
      check_lora(rows, outputs, 300, 200, 6);
    }
    check_lora(rows, rows == 4, 1100, 129, 11);
  }
  return finish_test();
}
