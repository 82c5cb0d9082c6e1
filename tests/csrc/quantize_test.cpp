/// Every quantiser over weights of all kinds: nothing outside the output is written, nothing beside the row is read,
/// and what comes out is finite and near. Meant for the sanitizers; the bytes are checked against gguf.quants in
/// tests/quant.
#include "quant/quantize.h"

#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"

namespace {

using sterna::Format;

int failures = 0;

void expect(bool condition, const Format& format, const std::string& what) {
  if (condition) return;
  std::printf("%s: %s\n", std::string(format.name).c_str(), what.c_str());
  ++failures;
}

/// Weights and importance exactly as large as they are, so that what lies beside them is poisoned.
void check_rows(const Format& format, const std::function<float()>& draw, std::uint64_t rows, std::uint64_t k,
                bool weighted, const std::string& what) {
  const auto x = std::make_unique<float[]>(rows * k);
  for (std::uint64_t i = 0; i < rows * k; ++i) x[i] = draw();
  const auto importance = std::make_unique<float[]>(k);
  for (std::uint64_t i = 0; i < k; ++i) importance[i] = static_cast<float>(i % 7);
  const std::uint64_t blocks = rows * k / format.block_size;
  const auto out = std::make_unique<std::uint8_t[]>(blocks * format.block_bytes);
  sterna::quantize(format, {x.get(), rows * k}, k, {importance.get(), weighted ? k : 0},
                   {out.get(), blocks * format.block_bytes});

  std::vector<float> back(format.block_size);
  double error = 0.0, energy = 0.0;
  for (std::uint64_t b = 0; b < blocks; ++b) {
    format.dequantize(out.get() + b * format.block_bytes, back.data());
    for (std::uint32_t i = 0; i < format.block_size; ++i) {
      const float weight = x[b * format.block_size + i];
      if (!std::isfinite(back[i])) return expect(false, format, what + ": not finite");
      const double difference = static_cast<double>(weight) - static_cast<double>(back[i]);
      error += difference * difference;
      energy += static_cast<double>(weight) * static_cast<double>(weight);
    }
  }
  // Ternary formats take the largest weight as scale: most of the others become zero.
  expect(error <= 1.2 * energy + 1e-10, format, what + ": far from the weights");
}

template <class Error>
void expect_error(const Format& format, const char* what, const std::function<void()>& call) {
  try {
    call();
  } catch (const Error&) {
    return;
  }
  expect(false, format, what);
}

void check_arguments(const Format& format) {
  const std::uint64_t k = format.block_size;
  std::vector<float> x(2 * k, 1.0f);
  std::vector<float> importance(k, 1.0f);
  std::vector<std::uint8_t> out(2 * format.block_bytes);
  const auto run = [&](std::uint64_t width, std::size_t weighted, std::size_t bytes) {
    sterna::quantize(format, x, width, std::span(importance).first(weighted), std::span(out).first(bytes));
  };
  expect_error<sterna::ArgumentError>(format, "rows of no weights", [&] { run(0, 0, out.size()); });
  expect_error<sterna::ArgumentError>(format, "half a row", [&] { run(3 * k, 0, out.size()); });
  expect_error<sterna::ArgumentError>(format, "too little room", [&] { run(k, 0, out.size() - 1); });
  if (k > 1) {
    expect_error<sterna::ArgumentError>(format, "half a block", [&] { run(k + k / 2, 0, out.size()); });
    expect_error<sterna::ArgumentError>(format, "importance of half a row", [&] { run(k, k / 2, out.size()); });
  }
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    x[k] = bad;
    expect_error<sterna::NumericError>(format, "a weight that is no number", [&] { run(k, 0, out.size()); });
  }
  x[k] = 0.0f;
  if (sterna::takes_importance(format.id)) {
    importance[0] = -1.0f;
    expect_error<sterna::ArgumentError>(format, "negative importance", [&] { run(k, k, out.size()); });
  }
}

void check_format(const Format& format, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::student_t_distribution<float> heavy(2.0f);
  const std::pair<const char*, std::function<float()>> draws[] = {
      {"normal", [&] { return normal(random); }},
      {"heavy tails", [&] { return std::fmin(std::fmax(heavy(random), -1e4f), 1e4f); }},
      {"zeros", [] { return 0.0f; }},
      {"one value", [] { return -0.3f; }},
      {"positive", [&] { return 3.0f + std::fabs(normal(random)); }},
      {"three values", [&] { return static_cast<float>(static_cast<int>(random() % 3) - 1); }},
      {"mostly zero", [&] { return random() % 50 == 0 ? normal(random) : 0.0f; }},
      {"small", [&] { return 1e-7f * normal(random); }},
      {"subnormal", [&] { return 1e-41f * normal(random); }},
      {"large", [&] { return 6e4f * std::tanh(normal(random)); }},
  };
  const std::uint64_t widths[] = {format.block_size <= 32 ? 288u : 256u, 512u};
  for (const auto& [what, draw] : draws) {
    for (const std::uint64_t k : widths) {
      check_rows(format, draw, 3, k, false, what);
      check_rows(format, draw, 3, k, true, std::string(what) + ", weighted");
    }
  }
  check_arguments(format);
}

}  // namespace

int main() {
  constexpr unsigned kSeed = 20261121;
  std::printf("seed %u\n", kSeed);
  std::mt19937 random(kSeed);
  int count = 0;
  for (const Format& format : sterna::formats()) {
    if (!sterna::can_quantize(format.id)) continue;
    check_format(format, random);
    ++count;
  }
  const Format* none = sterna::find_format(std::string_view("IQ1_S"));
  std::vector<float> x(256);
  std::vector<std::uint8_t> out(50);
  expect_error<sterna::ArgumentError>(*none, "quantised without a quantiser",
                                      [&] { sterna::quantize(*none, x, 256, {}, out); });
  std::printf("%d quantisers, %d failures\n", count, failures);
  return failures == 0 ? 0 : 1;
}
