/// The kernels of recurrent layers run on the CPU: convolutions and scans give the bits of the CPU's scalar code, delta
/// rules what their definition in double gives; and how tokens come, in which runs and segments, changes no bit.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <limits>
#include <vector>

#include "cpu/isa.h"
#include "cpu/kernel_table.h"
#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

constexpr float kUntouched = -7.0f;
constexpr std::int64_t kOffset = 5;  // of the layer's state in a half
constexpr std::int64_t kBehind = 4;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

using Lengths = std::vector<std::vector<std::int32_t>>;  // [sequence][segment]: rows
const Lengths kLengths = {{3}, {5, 9, 2}, {1}, {11, 1}, {4, 4, 4, 4}};
constexpr std::int64_t kNumRows = 3 + 16 + 1 + 12 + 16;

/// A batch of sequences with states; each begins with what `sources` has for it, maybe null.
struct Run {
  TestBatch batch{0};
  std::deque<std::vector<float>> halves;  // of the segments

  Run(const Lengths& lengths, std::int64_t state_size, const std::vector<const float*>& sources) {
    TestBatch& b = batch;
    b.first_rows.clear();
    b.segment_starts = {0};
    std::int32_t row = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      const std::int32_t first = row;
      const float* source = sources[s];
      for (const std::int32_t length : lengths[s]) {
        halves.emplace_back(at(kOffset + state_size + kBehind), kUntouched);
        b.segments.push_back({source, halves.back().data(), row, row + length});
        source = halves.back().data();
        row += length;
      }
      b.first_rows.push_back(first);
      b.row_segments.insert(b.row_segments.end(), at(row - first), b.segment_starts.back());
      b.sequences.insert(b.sequences.end(), at(row - first), static_cast<std::int32_t>(s));
      b.last_rows.insert(b.last_rows.end(), at(row - first), row - 1);
      b.segment_starts.push_back(static_cast<std::int32_t>(b.segments.size()));
    }
    b.counts = {row, row, static_cast<std::int32_t>(lengths.size())};
    // What graphs may leave behind the last row and sequence must not be looked at.
    b.row_segments.push_back(1 << 30);
    b.sequences.push_back(1 << 30);
    b.segment_starts.push_back(1 << 30);
  }
};

/// An op on random rows: `launch` runs rows [first, ..) as a batch has them; `token` is the definition, which changes
/// the state and gives y.
struct Case {
  const char* name;
  std::int64_t state_size, y_size;
  double tolerance;
  Rows y;
  std::function<void(const TestBatch&, std::int64_t first)> launch;
  std::function<void(std::int64_t row, std::vector<double>& state, std::vector<double>& y)> token;
};

Rows from_row(Rows rows, std::int64_t first) {
  rows.data += first * rows.stride;
  return rows;
}

void expect_bits(const float* actual, const float* expected, std::int64_t count, const char* what) {
  for (std::int64_t i = 0; i < count; ++i) {
    if (std::memcmp(actual + i, expected + i, 4) != 0) expect_near(actual[i], expected[i], -1.0, what);
  }
}

void check_untouched(const Case& c, const std::vector<float>& half) {
  for (std::int64_t i = 0; i < kOffset; ++i) expect_near(half[at(i)], kUntouched, 0, "before the state");
  for (std::int64_t i = 0; i < kBehind; ++i) {
    expect_near(half[at(kOffset + c.state_size + i)], kUntouched, 0, "behind the state");
  }
}

void check(const Case& c) {
  const std::vector<float> kept = random_floats(kOffset + c.state_size + kBehind, 77);
  const std::vector<float> copy = kept;
  const std::vector<const float*> sources = {kept.data(), nullptr, kept.data(), kept.data(), nullptr};
  Run run(kLengths, c.state_size, sources);
  c.launch(run.batch, 0);
  expect_bits(kept.data(), copy.data(), static_cast<std::int64_t>(kept.size()), "the state that was read");

  std::vector<double> state, y(at(c.y_size));
  for (const StateSegment& segment : run.batch.segments) {
    if (segment.source == nullptr) {
      state.assign(at(c.state_size), 0.0);
    } else if (segment.source == kept.data()) {
      state.assign(kept.begin() + kOffset, kept.begin() + kOffset + c.state_size);
    }
    for (std::int64_t row = segment.first_row; row < segment.last_row; ++row) {
      c.token(row, state, y);
      for (std::int64_t i = 0; i < c.y_size; ++i) expect_near(c.y.row(row)[i], y[at(i)], c.tolerance, c.name);
    }
    for (std::int64_t i = 0; i < c.state_size; ++i) {
      expect_near(segment.target[kOffset + i], state[at(i)], c.tolerance, "state");
    }
  }
  for (const std::vector<float>& half : run.halves) check_untouched(c, half);
  for (std::int64_t i = c.y_size; i < c.y.stride; ++i) expect_near(c.y.row(0)[i], kUntouched, 0, "beyond the row");
  for (std::int64_t i = 0; i < c.y.stride; ++i) expect_near(c.y.row(kNumRows)[i], kUntouched, 0, "beyond the rows");

  // Alone, in runs of other lengths, each of which begins with what the one before left.
  std::int64_t first = 0;
  std::size_t segments = 0;
  for (std::size_t s = 0; s < kLengths.size(); ++s) {
    std::int64_t rows_of_sequence = 0;
    for (const std::int32_t length : kLengths[s]) rows_of_sequence += length;
    segments += kLengths[s].size();
    const std::vector<float> together(c.y.row(first), c.y.row(first + rows_of_sequence));
    std::vector<float> handed;
    const float* source = sources[s];
    std::int32_t next = 1;
    for (std::int64_t done = 0; done < rows_of_sequence; next = next % 4 + 1) {
      const auto length = static_cast<std::int32_t>(std::min<std::int64_t>(next, rows_of_sequence - done));
      Run part({{length}}, c.state_size, {source});
      c.launch(part.batch, first + done);
      handed = part.halves.back();
      source = handed.data();
      done += length;
    }
    expect_bits(c.y.row(first), together.data(), rows_of_sequence * c.y.stride, "split rows");
    expect_bits(handed.data(), run.halves[segments - 1].data(), static_cast<std::int64_t>(handed.size()),
                "state of split rows");
    first += rows_of_sequence;
  }
}

/// Rows of the batch, one more so that a test sees what is written behind them, and three floats behind each.
struct Numbers {
  std::vector<float> values;
  Rows view;

  Numbers(std::int64_t n, unsigned seed, float scale = 1.0f)
      : values(random_floats((kNumRows + 1) * (n + 3), seed, scale)), view(rows(values, n + 3)) {}
};
struct Results {
  std::vector<float> values;
  Rows view;

  explicit Results(std::int64_t n) : values(at((kNumRows + 1) * (n + 3)), kUntouched), view(rows(values, n + 3)) {}
};

void check_conv(std::int64_t channels, std::int32_t kernel, bool biased) {
  const Numbers x(channels, 1);
  const Results y(channels);
  const std::vector<float> w = random_floats(kernel * channels, 2), bias = random_floats(channels, 3);
  ShortConvArguments a{};
  a.x = x.view;
  a.y = y.view;
  a.w = w.data();
  a.bias = biased ? bias.data() : nullptr;
  a.kernel = kernel;
  a.channels = channels;
  a.state_offset = kOffset;
  const auto launch = [&](const TestBatch& batch, std::int64_t first) {
    ShortConvArguments part = a;
    part.x = from_row(a.x, first);
    part.y = from_row(a.y, first);
    batch.launch(Kernel::kShortConv, part);
  };
  const auto token = [&](std::int64_t row, std::vector<double>& state, std::vector<double>& result) {
    state.insert(state.end(), a.x.row(row), a.x.row(row) + channels);
    for (std::int64_t c = 0; c < channels; ++c) {
      float sum = biased ? bias[at(c)] : 0.0f;
      for (std::int64_t j = 0; j < kernel; ++j) {
        sum = std::fma(static_cast<float>(state[at(j * channels + c)]), w[at(j * channels + c)], sum);
      }
      result[at(c)] = sum;
    }
    state.erase(state.begin(), state.begin() + channels);
  };
  check({"short_conv", (kernel - 1) * channels, channels, 0.0, y.view, launch, token});
}

std::vector<float> negative(std::vector<float> values) {
  for (float& value : values) value = -std::abs(value);
  return values;
}

void check_scan(bool per_channel, std::int32_t heads, std::int32_t head_dim, std::int32_t groups,
                std::int32_t state_dim) {
  const cpu::KernelTable& kernels = cpu::kernel_table("scalar");
  const std::int64_t channels = std::int64_t{heads} * head_dim;
  const Numbers x(channels, 1), dt(heads, 2, 0.3f), b(groups * state_dim, 3), c(groups * state_dim, 4);
  const Results y(channels);
  const std::vector<float> a_values = negative(random_floats(per_channel ? heads * state_dim : heads, 5));
  const std::vector<float> d = random_floats(heads, 6);
  SsmScanArguments a{};
  a.x = x.view;
  a.dt = dt.view;
  a.b = b.view;
  a.c = c.view;
  a.y = y.view;
  a.a = a_values.data();
  a.d = d.data();
  a.per_channel = per_channel;
  a.heads = heads;
  a.head_dim = head_dim;
  a.groups = groups;
  a.state_dim = state_dim;
  a.state_offset = kOffset;
  const auto launch = [&](const TestBatch& batch, std::int64_t first) {
    SsmScanArguments part = a;
    for (Rows* rows : {&part.x, &part.dt, &part.b, &part.c, &part.y}) *rows = from_row(*rows, first);
    batch.launch(Kernel::kSsmScan, part);
  };
  const auto token = [&](std::int64_t row, std::vector<double>& state, std::vector<double>& result) {
    std::vector<float> floats(state.begin(), state.end()), sums(result.size());
    for (std::int32_t head = 0; head < (per_channel ? 1 : heads); ++head) {
      const std::int64_t channel = std::int64_t{head} * head_dim;
      const std::int64_t group = per_channel ? 0 : head / (heads / groups) * state_dim;
      cpu::SsmArgs args{};
      args.state_in = args.state_out = floats.data() + channel * state_dim;
      args.rows = per_channel ? heads : head_dim;
      args.n = state_dim;
      args.x = a.x.row(row) + channel;
      args.b = a.b.row(row) + group;
      args.c = a.c.row(row) + group;
      args.y = sums.data() + channel;
      args.per_row = per_channel;
      args.dt = a.dt.row(row) + head;
      args.a = a.a + head;
      args.d = a.d + head;
      kernels.ssm_scan(args);
    }
    state.assign(floats.begin(), floats.end());
    result.assign(sums.begin(), sums.end());
  };
  check({"ssm_scan", channels * state_dim, channels, 0.0, y.view, launch, token});
}

void check_delta(std::int32_t key_heads, std::int32_t key_dim, std::int32_t value_heads, std::int32_t value_dim) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(key_dim));
  const Numbers q(key_heads * key_dim, 1, scale), k(key_heads * key_dim, 2, scale), v(value_heads * value_dim, 3);
  Numbers g(value_heads, 4, 0.3f), beta(value_heads, 5);
  g.values = negative(g.values);
  for (float& value : beta.values) value = 1.0f / (1.0f + std::exp(-value));
  g.view = rows(g.values, g.view.stride);
  const Results y(value_heads * value_dim);
  DeltaRuleArguments a{};
  a.q = q.view;
  a.k = k.view;
  a.v = v.view;
  a.g = g.view;
  a.beta = beta.view;
  a.y = y.view;
  a.key_heads = key_heads;
  a.key_dim = key_dim;
  a.value_heads = value_heads;
  a.value_dim = value_dim;
  a.state_offset = kOffset;
  const auto launch = [&](const TestBatch& batch, std::int64_t first) {
    DeltaRuleArguments part = a;
    for (Rows* rows : {&part.q, &part.k, &part.v, &part.g, &part.beta, &part.y}) *rows = from_row(*rows, first);
    batch.launch(Kernel::kDeltaRule, part);
  };
  const auto token = [&](std::int64_t row, std::vector<double>& state, std::vector<double>& result) {
    for (std::int32_t head = 0; head < value_heads; ++head) {
      const std::int64_t key = std::int64_t{head / (value_heads / key_heads)} * key_dim;
      double* const s = state.data() + std::int64_t{head} * key_dim * value_dim;
      for (std::int32_t column = 0; column < value_dim; ++column) {
        double memory = 0, sum = 0;
        const double decay = std::exp(static_cast<double>(a.g.row(row)[head]));
        for (std::int32_t i = 0; i < key_dim; ++i) {
          s[i * value_dim + column] *= decay;
          memory += s[i * value_dim + column] * a.k.row(row)[key + i];
        }
        const double delta = (a.v.row(row)[head * value_dim + column] - memory) * a.beta.row(row)[head];
        for (std::int32_t i = 0; i < key_dim; ++i) {
          s[i * value_dim + column] += a.k.row(row)[key + i] * delta;
          sum += s[i * value_dim + column] * a.q.row(row)[key + i];
        }
        result[at(std::int64_t{head} * value_dim + column)] = sum;
      }
    }
  };
  check({"delta_rule", std::int64_t{value_heads} * key_dim * value_dim, std::int64_t{value_heads} * value_dim, 1e-5,
         y.view, launch, token});
}

/// More segments than a warp has lanes: every one ends with the inputs of its last rows.
void check_many_segments() {
  constexpr std::int32_t kChannels = 3, kKernel = 3;
  constexpr std::int32_t kRows = 40;
  static_assert(kRows < kNumRows);
  const Numbers x(kChannels, 1);
  const Results y(kChannels);
  const std::vector<float> w = random_floats(kKernel * kChannels, 2);
  const ShortConvArguments a{x.view, y.view, w.data(), nullptr, kKernel, kChannels, kOffset};
  Run run({std::vector<std::int32_t>(kRows, 1)}, (kKernel - 1) * kChannels, {nullptr});
  run.batch.launch(Kernel::kShortConv, a);
  for (std::int64_t row = 1; row < kRows; ++row) {
    const float* const state = run.batch.segments[at(row)].target + kOffset;
    expect_bits(state, x.view.row(row - 1), kChannels, "the row before");
    expect_bits(state + kChannels, x.view.row(row), kChannels, "the last row");
  }
}

/// A sequence of NaNs and infinities leaves its neighbours alone.
void check_hostile() {
  constexpr std::int32_t kKeys = 20, kValues = 33;
  Numbers k(kKeys, 1), v(kValues, 2), scalar(1, 3);
  const Results y(kValues), again(kValues);
  DeltaRuleArguments a{k.view, k.view, v.view, scalar.view, scalar.view, y.view, 1, kKeys, 1, kValues, 0};
  Run run({{4}, {2, 2}, {4}}, kKeys * kValues, {nullptr, nullptr, nullptr});
  run.batch.launch(Kernel::kDeltaRule, a);
  for (Numbers* numbers : {&k, &v, &scalar}) {
    numbers->view.row(4)[0] = std::numeric_limits<float>::quiet_NaN();
    numbers->view.row(6)[0] = -std::numeric_limits<float>::infinity();
  }
  a.y = again.view;
  run.batch.launch(Kernel::kDeltaRule, a);
  for (const std::int64_t row : {0, 3, 8, 11}) expect_bits(again.view.row(row), y.view.row(row), kValues, "neighbour");
  SsmScanArguments s{v.view, scalar.view, k.view, k.view, y.view, k.values.data(), v.values.data(), false,
                     1,      kValues,     1,      kKeys,  0};
  run.batch.launch(Kernel::kSsmScan, s);
}

}  // namespace

int main() {
  for (const std::int64_t channels : {1, 31, 129, 300}) {
    check_conv(channels, 4, true);
    check_conv(channels, 2, false);
  }
  check_conv(33, 64, true);
  check_scan(false, 1, 1, 1, 1);
  check_scan(false, 4, 5, 2, 17);
  check_scan(false, 6, 33, 3, 64);
  check_scan(false, 2, 7, 1, 128);
  check_scan(false, 3, 5, 3, 200);
  check_scan(true, 70, 1, 1, 16);
  check_scan(true, 33, 1, 1, 31);
  check_scan(true, 9, 1, 1, 40);
  check_scan(true, 3, 1, 1, 100);
  check_scan(true, 3, 1, 1, 256);
  check_delta(1, 1, 1, 1);
  check_delta(2, 19, 4, 33);
  check_delta(1, 64, 2, 31);
  check_delta(2, 128, 2, 40);
  check_delta(1, 130, 1, 35);
  check_many_segments();
  check_hostile();
  return finish_test();
}
