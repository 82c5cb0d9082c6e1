/// The rope kernels against the CPU's scalar kernels, bit for bit, and against the definition in double.
#include <cmath>
#include <vector>

#include "cpu/isa.h"
#include "cpu/rope_table.h"
#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

constexpr std::int32_t kRows = 5;
constexpr std::int32_t kSpare = 2;
constexpr float kUntouched = -12345.5f;

std::size_t at(std::int64_t row, std::int64_t stride, std::int64_t i) {
  return static_cast<std::size_t>(row * stride + i);
}

std::vector<float> frequencies(std::int32_t pairs, double base) {
  std::vector<float> values;
  for (std::int32_t i = 0; i < pairs; ++i) values.push_back(static_cast<float>(std::pow(base, -double(i) / pairs)));
  return values;
}

void check_table(std::int32_t pairs, bool has_long) {
  const std::vector<float> usual = frequencies(pairs, 10000.0);
  const std::vector<float> longer = frequencies(pairs, 500000.0);
  TestBatch batch(kRows);
  batch.counts[2] = 2;
  batch.positions = {0, 1, 77, 131071, 90000000};
  batch.sequences = {0, 1, 1, 0, 1};
  batch.is_long = {0, 1};
  const std::int64_t stride = pairs + 3;
  std::vector<float> cosines(static_cast<std::size_t>((kRows + kSpare) * stride), kUntouched);
  std::vector<float> sines = cosines;
  std::vector<float> expected_cosines = cosines;
  std::vector<float> expected_sines = cosines;
  for (std::int32_t row = 0; row < kRows; ++row) {
    const auto t = static_cast<std::size_t>(row);
    const bool is_long = has_long && batch.sequences[t] == 1;
    cpu::rope_angles(batch.positions[t], is_long ? longer : usual, 1.25f, &expected_cosines[at(row, stride, 0)],
                     &expected_sines[at(row, stride, 0)]);
  }
  const RopeTableArguments arguments = {
      usual.data(), has_long ? longer.data() : nullptr, pairs, 1.25f, rows(cosines, stride), rows(sines, stride)};
  batch.launch(Kernel::kRopeTable, arguments, kSpare);
  for (std::size_t i = 0; i < cosines.size(); ++i) {
    expect_same(cosines[i], expected_cosines[i], "cosines");
    expect_same(sines[i], expected_sines[i], "sines");
  }
}

struct Options {
  std::int32_t heads, head_dim, rotary_dim;  // rotary_dim 0: none
  bool normed, interleaved, in_place;
};

/// One head in double.
std::vector<double> define(const Options& o, const float* x, const std::vector<float>& norm, float eps,
                           const float* cosines, const float* sines) {
  std::vector<double> y(x, x + o.head_dim);
  if (o.normed) {
    double squares = 0;
    for (const double value : y) squares += value * value;
    const double rms = std::sqrt(squares / o.head_dim + eps);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] = y[i] / rms * norm[i];
  }
  const std::int32_t half = o.rotary_dim / 2;
  for (std::int32_t i = 0; i < half; ++i) {
    const auto first = static_cast<std::size_t>(o.interleaved ? 2 * i : i);
    const auto second = static_cast<std::size_t>(o.interleaved ? 2 * i + 1 : i + half);
    const double a = y[first];
    const double b = y[second];
    y[first] = a * cosines[i] - b * sines[i];
    y[second] = b * cosines[i] + a * sines[i];
  }
  return y;
}

void check_rope(const Options& o) {
  constexpr float kEps = 1e-6f;
  const cpu::KernelTable& kernels = cpu::kernel_table("scalar");
  const std::int64_t n = std::int64_t{o.heads} * o.head_dim;
  const std::int64_t stride = n + 5;
  const std::int64_t half = o.rotary_dim / 2;
  std::vector<float> x = random_floats((kRows + kSpare) * stride, 1);
  std::vector<float> cosines = random_floats(kRows * (half + 1), 2);
  std::vector<float> sines = random_floats(kRows * (half + 1), 3);
  const std::vector<float> norm = random_floats(o.head_dim, 4);
  // Signs of zeros, a head of zeros, and one with a NaN.
  if (half > 0) sines[0] = -0.0f;
  x[1] = 0.0f;
  for (std::int64_t i = 0; i < o.head_dim; ++i) x[at(1, stride, i)] = -0.0f;
  x[at(2, stride, n - 1)] = NAN;

  std::vector<float> y(x.size(), kUntouched);
  if (o.in_place) y = x;
  std::vector<float> expected = y;
  for (std::int32_t row = 0; row < kRows; ++row) {
    for (std::int32_t head = 0; head < o.heads; ++head) {
      const float* from = &x[at(row, stride, std::int64_t{head} * o.head_dim)];
      float* to = &expected[at(row, stride, std::int64_t{head} * o.head_dim)];
      std::copy_n(from, o.head_dim, to);
      if (o.normed) kernels.rms_norm(from, norm.data(), to, o.head_dim, kEps);
      if (half == 0) continue;
      const float* c = &cosines[at(row, half + 1, 0)];
      kernels.rope(to, 1, o.head_dim, o.rotary_dim, o.interleaved, c, &sines[at(row, half + 1, 0)]);
    }
  }
  RopeArguments arguments{};
  arguments.x = rows(o.in_place ? y : x, stride);
  arguments.y = rows(y, stride);
  arguments.heads = o.heads;
  arguments.head_dim = o.head_dim;
  if (o.normed) arguments.transform.norm = norm.data();
  arguments.transform.eps = kEps;
  if (half > 0) {
    arguments.transform.cosines = rows(cosines, half + 1);
    arguments.transform.sines = rows(sines, half + 1);
  }
  arguments.transform.rotary_dim = o.rotary_dim;
  arguments.transform.interleaved = o.interleaved;
  TestBatch(kRows).launch(Kernel::kRope, arguments, kSpare);
  for (std::size_t i = 0; i < y.size(); ++i) expect_same(y[i], expected[i], "rope");

  for (std::int32_t row = 0; row < kRows; ++row) {
    for (std::int32_t head = 0; head < o.heads; ++head) {
      const std::int64_t offset = std::int64_t{head} * o.head_dim;
      const auto wanted = define(o, &x[at(row, stride, offset)], norm, kEps, cosines.data() + row * (half + 1),
                                 sines.data() + row * (half + 1));
      for (std::int32_t i = 0; i < o.head_dim; ++i) {
        const double value = wanted[static_cast<std::size_t>(i)];
        const float got = y[at(row, stride, offset + i)];
        if (std::isnan(value)) {
          expect_same(got, NAN, "rope of a NaN");
        } else {
          expect_near(got, value, 2e-6, "rope as defined");
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (const std::int32_t pairs : {1, 31, 64, 129}) {
    check_table(pairs, false);
    check_table(pairs, true);
  }
  for (const bool normed : {false, true}) {
    for (const bool interleaved : {false, true}) {
      for (const bool in_place : {false, true}) {
        check_rope({1, 2, 2, normed, interleaved, in_place});
        check_rope({3, 31, 30, normed, interleaved, in_place});
        check_rope({5, 33, 0, normed, interleaved, in_place});
        check_rope({2, 64, 64, normed, interleaved, in_place});
        check_rope({7, 128, 128, normed, interleaved, in_place});
        check_rope({1, 300, 70, normed, interleaved, in_place});
      }
    }
  }
  return finish_test();
}
