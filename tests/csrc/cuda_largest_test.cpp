/// The largest logits of a row against a sort of the whole row.
#include <limits>
#include <numeric>
#include <string>

#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

/// Token ids by falling logit, then rising id.
std::vector<std::int32_t> sorted_tokens(const float* logits, std::int64_t n) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
  std::iota(tokens.begin(), tokens.end(), 0);
  std::stable_sort(tokens.begin(), tokens.end(), [&](std::int32_t a, std::int32_t b) { return logits[a] > logits[b]; });
  return tokens;
}

/// Rows of n logits, of which wanted[row] are asked for; those in `bad` are not finite.
void check(const std::vector<float>& logits, std::int64_t n, const std::vector<std::int32_t>& wanted,
           const std::vector<std::int32_t>& bad = {}) {
  const auto num_rows = static_cast<std::int32_t>(wanted.size());
  const std::int64_t most = *std::max_element(wanted.begin(), wanted.end());
  const TokenLogit untouched{-7, 0.0f};
  std::vector<TokenLogit> found(static_cast<std::size_t>(num_rows * (1 + most)), untouched);
  LargestArguments a{};
  a.logits = rows(logits, n, true);
  a.n = n;
  a.groups = (n + 31) / 32;
  std::vector<std::uint32_t> maxima(static_cast<std::size_t>(num_rows * a.groups), 0xABABABABu);
  a.maxima = maxima.data();
  a.largest = found.data();
  a.most = most;
  TestBatch batch(num_rows);
  batch.largest = wanted;
  batch.launch(Kernel::kLargest, a);
  for (std::int32_t row = 0; row < num_rows; ++row) {
    const TokenLogit* result = found.data() + row * (1 + most);
    const std::int32_t k = wanted[static_cast<std::size_t>(row)];
    const bool is_bad = std::find(bad.begin(), bad.end(), row) != bad.end();
    const std::string what = std::to_string(k) + " of " + std::to_string(n) + ", row " + std::to_string(row);
    const std::int64_t count = is_bad ? 0 : std::min<std::int64_t>(k, n);
    expect_same(static_cast<float>(result[0].token), static_cast<float>(k == 0 ? untouched.token : count),
                (what + ": count").c_str());
    if (is_bad || k == 0) continue;
    const float* x = logits.data() + row * n;
    const std::vector<std::int32_t> tokens = sorted_tokens(x, n);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t token = tokens[static_cast<std::size_t>(i)];
      expect_same(static_cast<float>(result[1 + i].token), static_cast<float>(token), (what + ": token").c_str());
      expect_same(result[1 + i].logit, x[token], (what + ": logit").c_str());
    }
  }
}

}  // namespace

int main() {
  for (const std::int64_t n : {1, 2, 31, 32, 33, 100, 1000, 8191, 8192, 40000}) {
    check(random_floats(2 * n, static_cast<unsigned>(n), 4.0f), n, {1, kMostLargest});
    check(random_floats(3 * n, static_cast<unsigned>(n) + 1, 4.0f), n, {0, 40, 7});
  }
  // Equal logits: few values, in many places; both zeros.
  std::vector<float> ties = random_floats(2 * 5000, 3, 1.0f);
  for (float& x : ties) x = std::round(x);
  check(ties, 5000, {200, kMostLargest});
  std::vector<float> zeros(700, -1.0f);
  for (std::size_t i = 0; i < zeros.size(); i += 3) zeros[i] = i % 2 == 0 ? 0.0f : -0.0f;
  check(zeros, 700, {100});
  check(std::vector<float>(3000, 2.5f), 3000, {kMostLargest});
  check(std::vector<float>(3000, -2.5f), 3000, {1});
  // All of the largest in one group, or each in a group of its own; the ends of float.
  std::vector<float> rising(9000);
  std::iota(rising.begin(), rising.end(), -4000.0f);
  check(rising, 9000, {33});
  std::vector<float> apart(9000, 0.0f);
  for (std::size_t i = 5; i < apart.size(); i += 64) apart[i] = static_cast<float>(i);
  check(apart, 9000, {100});
  std::vector<float> wide = random_floats(4000, 9, 1.0f);
  for (float& x : wide) x = std::ldexp(x, static_cast<int>(x * 25.0f));
  wide[17] = std::numeric_limits<float>::max();
  wide[18] = -std::numeric_limits<float>::max();
  wide[19] = std::numeric_limits<float>::denorm_min();
  check(wide, 4000, {kMostLargest});
  // Not finite, in the middle, at the end, alone.
  for (const float x : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                        std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> logits = random_floats(3 * 2000, 5, 1.0f);
    logits[2000 + 300] = x;
    check(logits, 2000, {10, 10, 10}, {1});
    logits[2 * 2000 + 1999] = x;
    check(logits, 2000, {10, 1, 10}, {1, 2});
    check(std::vector<float>(1, x), 1, {1}, {0});
  }
  return finish_test();
}
