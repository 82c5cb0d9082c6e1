/// The self test of the kernels of recurrent layers.
#include <string>

#include "cpu/kernel_table.h"
#include "cpu/self_test_checker.h"

namespace sterna::cpu {
namespace {

void check_conv(Checker& checker, const KernelTable& level, const KernelTable& definition, std::int64_t channels) {
  const Floats x = checker.numbers(3 * channels), w = checker.numbers(4 * channels), bias = checker.numbers(channels);
  const float* inputs[] = {nullptr, x.data(), x.data() + channels, x.data() + 2 * channels};
  Floats got(bias.size()), wanted(bias.size());
  ConvArgs args{inputs, 4, channels, w.data(), channels, bias.data(), got.data()};
  level.short_conv(args);
  args.y = wanted.data();
  definition.short_conv(args);
  checker.expect_same("short_conv of " + std::to_string(channels), got, wanted);
}

void check_scan(Checker& checker, const KernelTable& level, const KernelTable& definition, int n, bool per_row) {
  constexpr int kRows = 7;
  const Floats state = checker.numbers(kRows * n), a = checker.numbers(kRows * n), b = checker.numbers(n);
  const Floats c = checker.numbers(n), x = checker.numbers(kRows), dt = checker.numbers(kRows);
  const Floats d = checker.numbers(kRows);
  for (const float* from : {static_cast<const float*>(nullptr), state.data()}) {
    const auto run = [&](const KernelTable& table) {
      Floats result(static_cast<std::size_t>(kRows * n + kRows));
      SsmArgs args{};
      args.state_in = from;
      args.state_out = result.data();
      args.rows = kRows;
      args.n = n;
      args.x = x.data();
      args.b = b.data();
      args.c = c.data();
      args.y = result.data() + kRows * n;
      args.per_row = per_row;
      args.dt = dt.data();
      args.a = a.data();
      args.d = d.data();
      table.ssm_scan(args);
      return result;
    };
    checker.expect_same("ssm_scan of " + std::to_string(n), run(level), run(definition));
  }
}

void check_delta(Checker& checker, const KernelTable& level, const KernelTable& definition, int value_dim) {
  constexpr int kKeys = 19;
  const Floats state = checker.numbers(kKeys * value_dim), v = checker.numbers(value_dim);
  const Floats q = checker.numbers(kKeys), k = checker.numbers(kKeys);
  for (const float* from : {static_cast<const float*>(nullptr), state.data()}) {
    const auto run = [&](const KernelTable& table) {
      Floats result(static_cast<std::size_t>((kKeys + 1) * value_dim));
      DeltaArgs args{from, result.data(), kKeys, value_dim, q.data(), k.data(), v.data(), -0.4f, 0.7f, nullptr};
      args.y = result.data() + kKeys * value_dim;
      table.delta_rule(args);
      return result;
    };
    checker.expect_same("delta_rule of " + std::to_string(value_dim), run(level), run(definition));
  }
}

}  // namespace

KernelCheck check_recurrent(const KernelTable& level, const KernelTable& definition, std::uint64_t seed) {
  Checker checker("recurrent layers", seed);
  for (const int n : {1, 15, 16, 17, 64, 100}) {
    check_conv(checker, level, definition, n);
    check_scan(checker, level, definition, n, false);
    check_scan(checker, level, definition, n, true);
    check_delta(checker, level, definition, n);
  }
  return std::move(checker).result();
}

}  // namespace sterna::cpu
