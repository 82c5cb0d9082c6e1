/// The norm kernels against their definition in double, run on the CPU.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <vector>

#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

void check_norm(std::int64_t heads, std::int64_t n, bool weighted, bool with_residual) {
  constexpr int kRows = 3;
  const std::vector<float> x = random_floats(kRows * heads * n, 1);
  const std::vector<float> weight = random_floats(n, 2);
  std::vector<float> residual = random_floats(kRows * heads * n, 3);
  std::vector<float> y(x.size());
  NormArguments a{};
  a.x = rows(x, heads * n);
  a.y = rows(y, heads * n);
  if (with_residual) a.residual = rows(residual, heads * n);
  a.weight = weighted ? weight.data() : nullptr;
  a.heads = heads;
  a.n = n;
  a.eps = 1e-5f;
  TestBatch batch(kRows);
  batch.launch(Kernel::kNorm, a);
  for (std::int64_t part = 0; part < kRows * heads; ++part) {
    double squares = 0;
    for (std::int64_t i = 0; i < n; ++i) squares += std::pow(x[static_cast<std::size_t>(part * n + i)], 2);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(part * n + i);
      double expected = x[at] / std::sqrt(squares / static_cast<double>(n) + 1e-5);
      if (weighted) expected *= weight[static_cast<std::size_t>(i)];
      if (with_residual) expected += residual[at];
      expect_near(y[at], expected, 1e-6, "norm");
    }
  }
}

void check_layer_norm(std::int64_t heads, std::int64_t n, bool weighted, bool biased) {
  constexpr int kRows = 3;
  const std::vector<float> x = random_floats(kRows * heads * n, 1);
  const std::vector<float> weight = random_floats(heads * n, 2), bias = random_floats(heads * n, 3);
  std::vector<float> y(x.size());
  LayerNormArguments a{};
  a.x = rows(x, heads * n);
  a.y = rows(y, heads * n);
  a.weight = weighted ? weight.data() : nullptr;
  a.bias = biased ? bias.data() : nullptr;
  a.heads = heads;
  a.n = a.head_step = n;
  a.eps = 1e-5f;
  TestBatch(kRows).launch(Kernel::kLayerNorm, a);
  for (std::int64_t part = 0; part < kRows * heads; ++part) {
    const auto* const values = x.data() + part * n;
    const double mean = std::accumulate(values, values + n, 0.0) / static_cast<double>(n);
    double squares = 0;
    for (std::int64_t i = 0; i < n; ++i) squares += std::pow(values[i] - mean, 2);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<std::size_t>(part % heads * n + i);
      double expected = (values[i] - mean) / std::sqrt(squares / static_cast<double>(n) + 1e-5);
      if (weighted) expected *= weight[at];
      if (biased) expected += bias[at];
      expect_near(y[static_cast<std::size_t>(part * n + i)], expected, 2e-6, "layer norm");
    }
  }
}

}  // namespace

int main() {
  for (const std::int64_t n : {1, 31, 64, 300, 1024, 1025, 9000}) {
    check_norm(1, n, true, false);
    check_norm(3, n, false, true);
    check_layer_norm(1, n, true, true);
    check_layer_norm(3, n, true, false);
    check_layer_norm(3, n, false, false);
  }
  return finish_test();
}
