/// The kernels that treat each float alone, copies and pools against the CPU's scalar kernels, bit for bit.
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

constexpr float kUntouched = -12345.5f;

const cpu::KernelTable& definition() { return cpu::kernel_table("scalar"); }

/// Rows that lie further apart than they are long, among them the numbers that functions treat specially.
struct Matrix {
  std::int64_t rows, n, stride;
  std::vector<float> data;

  Matrix(std::int64_t rows, std::int64_t n, float fill)
      : rows(rows), n(n), stride(n + 3), data(static_cast<std::size_t>(rows * stride), fill) {}
  Matrix(std::int64_t rows, std::int64_t n, unsigned seed) : Matrix(rows, n, 0.0f) {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    constexpr float kSpecial[] = {0.0f,   -0.0f,  kInfinity, -kInfinity, NAN,    0.625f, -0.625f, 1e-40f, -1e-40f,
                                  88.0f,  -88.0f, 87.3f,     -87.3f,     7.0f,   -7.0f,  7.5f,    -7.5f,  1e38f,
                                  -1e38f, 44.1f,  -44.1f,    13.4f,      -13.4f, 1.5f,   -1.5f,   1e-8f,  -1e-8f};
    data = random_floats(rows * stride, seed, 3.0f);
    for (std::size_t i = seed; i < data.size(); i += 11) data[i] = kSpecial[(i / 11 + seed) % std::size(kSpecial)];
  }
  float* row(std::int64_t i) { return data.data() + i * stride; }
  Rows view(bool outputs) { return {data.data(), stride, outputs}; }
};

void expect_same(const Matrix& actual, const Matrix& expected, const char* what) {
  for (std::size_t i = 0; i < expected.data.size(); ++i) cuda::expect_same(actual.data[i], expected.data[i], what);
}

/// Two tokens' rows more than outputs' rows, which are given in no order.
struct Setup {
  static constexpr std::int32_t kTokens = 5, kOutputs = 3, kSpare = 2;
  TestBatch batch{kTokens};
  Setup() {
    batch.counts[1] = kOutputs;
    batch.output_rows = {4, 0, 2};
  }
  static std::int64_t rows(bool outputs) { return outputs ? kOutputs : kTokens; }
};

void check_binary(std::int64_t n, std::int64_t period, bool weighted, bool multiplies, bool outputs, bool in_place) {
  const Setup setup;
  Matrix a(Setup::kTokens + Setup::kSpare, n, 1u);
  Matrix b(Setup::kTokens + Setup::kSpare, period, 2u);
  Matrix y(a.rows, n, kUntouched);
  if (in_place) y = a;
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::rows(outputs); ++row) {
    const float* operand = b.row(weighted ? 0 : row);
    for (std::int64_t i = 0; i < n; ++i) {
      const float x = a.row(row)[i];
      const float other = operand[i % period];
      expected.row(row)[i] = multiplies ? x * other : x + other;
    }
  }
  BinaryArguments arguments{};
  arguments.multiplies = multiplies;
  arguments.a = in_place ? y.view(outputs) : a.view(outputs);
  arguments.y = y.view(outputs);
  arguments.period = period;
  arguments.n = n;
  if (weighted) {
    arguments.weight = b.row(0);
  } else {
    arguments.b = b.view(outputs);
  }
  setup.batch.launch(Kernel::kBinary, arguments, Setup::kSpare);
  expect_same(y, expected, multiplies ? "mul" : "add");
}

/// Runs a kernel of one operand; `define(x, y)` is what it should do to a row.
template <class Arguments, class Define>
void check_unary(Kernel kernel, Arguments arguments, std::int64_t n, bool outputs, Define define, const char* what) {
  const Setup setup;
  Matrix x(Setup::kTokens + Setup::kSpare, n, 3u);
  Matrix y(x.rows, n, kUntouched);
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::rows(outputs); ++row) define(x.row(row), expected.row(row));
  arguments.x = x.view(outputs);
  arguments.y = y.view(outputs);
  arguments.n = n;
  setup.batch.launch(kernel, arguments, Setup::kSpare);
  expect_same(y, expected, what);
}

void check_glu(std::int64_t n, ActivationKind kind) {
  const Setup setup;
  Matrix gate(Setup::kTokens + Setup::kSpare, n, 4u);
  Matrix up(gate.rows, n, 7u);
  Matrix y(gate.rows, n, kUntouched);
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::kTokens; ++row) {
    definition().glu[static_cast<int>(kind)](gate.row(row), up.row(row), expected.row(row), n);
  }
  const GluArguments arguments = {gate.view(false), up.view(false), y.view(false), n, kind};
  setup.batch.launch(Kernel::kGlu, arguments, Setup::kSpare);
  expect_same(y, expected, "glu");
}

void check_copy(std::int64_t n, std::int64_t heads, bool outputs) {
  const Setup setup;
  const std::int64_t x_apart = n + 2;
  const std::int64_t y_apart = n + 1;
  Matrix x(Setup::kTokens + Setup::kSpare, heads * x_apart, 5u);
  Matrix y(x.rows, heads * y_apart, kUntouched);
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::rows(outputs); ++row) {
    for (std::int64_t head = 0; head < heads; ++head) {
      std::copy_n(x.row(row) + head * x_apart, n, expected.row(row) + head * y_apart);
    }
  }
  const CopyArguments arguments = {x.view(outputs), y.view(outputs), n, heads, x_apart, y_apart};
  setup.batch.launch(Kernel::kCopy, arguments, Setup::kSpare);
  expect_same(y, expected, "copy");
}

void check_take_rows(std::int64_t n) {
  const Setup setup;
  Matrix x(Setup::kTokens, n, 6u);
  Matrix y(Setup::kOutputs + Setup::kSpare, n, kUntouched);
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::kOutputs; ++row) {
    std::copy_n(x.row(setup.batch.output_rows[static_cast<std::size_t>(row)]), n, expected.row(row));
  }
  CopyArguments arguments{};
  arguments.x = x.view(false);
  arguments.y = y.view(true);
  arguments.n = n;
  setup.batch.launch(Kernel::kTakeRows, arguments, Setup::kSpare);
  expect_same(y, expected, "take_rows");
}

/// A part of what each row got from the plan before.
void check_receive(std::int64_t n) {
  constexpr std::int64_t kFirst = 5, kBehind = 3;
  Setup setup;
  const std::int64_t row_floats = kFirst + n + kBehind;
  setup.batch.received = random_floats(Setup::kTokens * row_floats, 7u);
  Matrix y(Setup::kTokens + Setup::kSpare, n, kUntouched);
  Matrix expected = y;
  for (std::int64_t row = 0; row < Setup::kTokens; ++row) {
    std::copy_n(setup.batch.received.data() + row * row_floats + kFirst, n, expected.row(row));
  }
  const ReceiveArguments arguments = {y.view(false), row_floats, kFirst, n};
  setup.batch.launch(Kernel::kReceive, arguments, Setup::kSpare);
  expect_same(y, expected, "receive");
}

/// Sequences of 1, 4, 40 and 17 rows, of which not all are asked for.
void check_pool(std::int64_t n, PoolKind kind) {
  const std::vector<std::int32_t> sizes = {1, 4, 40, 17};
  const std::vector<std::int32_t> wanted = {2, 0, 3};
  TestBatch batch(62);
  batch.first_rows.clear();
  std::vector<std::int32_t> lasts;
  std::int32_t rows = 0;
  for (std::size_t s = 0; s < sizes.size(); ++s) {
    batch.first_rows.push_back(rows);
    for (std::int32_t i = 0; i < sizes[s]; ++i)
      batch.sequences[static_cast<std::size_t>(rows + i)] = static_cast<int>(s);
    rows += sizes[s];
    lasts.push_back(rows - 1);
  }
  batch.counts = {rows, static_cast<std::int32_t>(wanted.size()), static_cast<std::int32_t>(sizes.size())};
  batch.output_rows.clear();
  for (const std::int32_t s : wanted) batch.output_rows.push_back(lasts[static_cast<std::size_t>(s)]);
  Matrix x(rows, n, 8u);
  Matrix y(static_cast<std::int64_t>(wanted.size()) + Setup::kSpare, n, kUntouched);
  Matrix expected = y;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const auto s = static_cast<std::size_t>(wanted[i]);
    float* result = expected.row(static_cast<std::int64_t>(i));
    std::copy_n(x.row(kind == PoolKind::kLast ? lasts[s] : batch.first_rows[s]), n, result);
    if (kind != PoolKind::kMean) continue;
    for (std::int32_t row = batch.first_rows[s] + 1; row <= lasts[s]; ++row) {
      definition().add(result, x.row(row), result, n);
    }
    definition().scale(result, 1.0f / static_cast<float>(sizes[s]), result, n);
  }
  const PoolArguments arguments = {x.view(false), y.view(true), n, kind};
  batch.launch(Kernel::kPool, arguments, Setup::kSpare);
  expect_same(y, expected, "pool");
}

}  // namespace

int main() {
  for (const std::int64_t n : {1, 31, 33, 300, 1030}) {
    for (const bool multiplies : {false, true}) {
      check_binary(n, n, false, multiplies, false, false);
      check_binary(n, n, false, multiplies, true, true);
      check_binary(n, n, true, multiplies, false, true);
      check_binary(n, 1, true, multiplies, true, false);
    }
    check_binary(n, 1, false, true, false, false);
    if (n % 10 == 0) check_binary(n, 10, true, true, false, false);

    ScaleArguments scale{};
    scale.operand = -1.7f;
    const auto define_scale = [n](const float* x, float* y) { definition().scale(x, -1.7f, y, n); };
    check_unary(Kernel::kScale, scale, n, false, define_scale, "scale");
    scale.operand = 2.5f;
    const auto define_clamp = [n](const float* x, float* y) { definition().clamp(x, 2.5f, y, n); };
    check_unary(Kernel::kClamp, scale, n, true, define_clamp, "clamp");

    for (int kind = 0; kind < kNumActivations; ++kind) {
      ActivationArguments activation{};
      activation.kind = static_cast<ActivationKind>(kind);
      const auto define = [=](const float* x, float* y) { definition().activation[kind](x, y, n); };
      check_unary(Kernel::kActivation, activation, n, false, define, "activation");
    }
    for (int kind = 0; kind < kNumGates; ++kind) check_glu(n, static_cast<ActivationKind>(kind));

    check_copy(n, 1, true);
    check_copy(n, 3, false);
    check_take_rows(n);
    check_receive(n);
    for (const PoolKind kind : {PoolKind::kMean, PoolKind::kFirst, PoolKind::kLast}) check_pool(n, kind);
  }
  return finish_test();
}
