/// Routes, sorted pairs and sums of experts against plain definitions, run on the CPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>
#include <vector>

#include "cuda_launch.h"

using namespace sterna;
using namespace sterna::cuda;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void expect_equal(std::int64_t actual, std::int64_t expected, const char* what) {
  if (actual == expected) return;
  if (++failures() <= 20) {
    std::printf("%s: %lld, expected %lld\n", what, static_cast<long long>(actual), static_cast<long long>(expected));
  }
}

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

/// NaNs lose, ties go to the lower index.
std::vector<std::int64_t> best(const std::vector<double>& values, std::int64_t count) {
  std::vector<std::int64_t> ids(values.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](std::int64_t a, std::int64_t b) {
    if (std::isnan(values[at(a)])) return false;
    return std::isnan(values[at(b)]) || values[at(a)] > values[at(b)];
  });
  ids.resize(at(count));
  return ids;
}

struct Routed {
  std::vector<std::int64_t> ids;
  std::vector<double> weights;
};

Routed define_route(const RouteArguments& a, const float* x) {
  const std::vector<double> logits(x, x + a.num_experts);
  const double largest = logits[at(best(logits, 1)[0])];
  std::vector<double> scores(logits.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    scores[i] = a.is_sigmoid ? 1 / (1 + std::exp(-logits[i])) : std::exp(logits[i] - largest);
  }
  if (!a.is_sigmoid) {
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
    for (double& score : scores) score /= sum;
  }
  std::vector<double> chosen_by = a.bias == nullptr ? logits : scores;
  std::vector<double> grouped_by = a.bias == nullptr && !a.two_best ? logits : scores;
  for (std::size_t i = 0; a.bias != nullptr && i < scores.size(); ++i) {
    chosen_by[i] += a.bias[i];
    grouped_by[i] += a.bias[i];
  }
  if (a.groups > 1) {
    const std::int64_t size = a.num_experts / a.groups;
    std::vector<double> of_groups;
    for (std::int64_t g = 0; g < a.groups; ++g) {
      const std::vector<double> group(grouped_by.begin() + g * size, grouped_by.begin() + (g + 1) * size);
      const std::vector<std::int64_t> two = best(group, a.two_best ? 2 : 1);
      of_groups.push_back(group[at(two[0])] + (a.two_best ? group[at(two[1])] : 0.0));
    }
    const std::vector<std::int64_t> chosen = best(of_groups, a.groups_used);
    for (std::int64_t i = 0; i < a.num_experts; ++i) {
      if (std::find(chosen.begin(), chosen.end(), i / size) == chosen.end()) chosen_by[at(i)] = kNan;
    }
  }
  Routed routed{best(chosen_by, a.used), {}};
  double sum = 0;
  for (const std::int64_t id : routed.ids) sum += scores[at(id)];
  for (const std::int64_t id : routed.ids) {
    routed.weights.push_back(scores[at(id)] / (a.normalize ? sum : 1.0) * a.factor);
  }
  return routed;
}

/// Logits may be few different numbers, so that many are equal; multiples of 1/4 besides, so that no choice depends on
/// how a score is rounded.
std::vector<float> logits_of(std::int64_t count, unsigned seed, bool with_ties) {
  std::vector<float> x = random_floats(count, seed, 2.0f);
  if (with_ties) {
    for (float& value : x) value = std::round(value * 2.0f) / 4.0f;
  }
  return x;
}

void check_route(RouteArguments a, bool with_ties, bool biased) {
  constexpr std::int64_t kRows = 4;
  const std::int64_t stride = a.num_experts + 3, to_stride = a.used + 1;
  const std::vector<float> x = logits_of(kRows * stride, 5, with_ties);
  const std::vector<float> bias = random_floats(a.num_experts, 6, 0.1f);
  std::vector<float> experts(at(kRows * to_stride + 9), -7.0f), weights = experts;
  a.x = rows(x, stride);
  a.experts = rows(experts, to_stride);
  a.weights = rows(weights, to_stride);
  a.bias = biased ? bias.data() : nullptr;
  TestBatch(kRows).launch(Kernel::kRoute, a);
  for (std::int64_t row = 0; row < kRows; ++row) {
    const Routed expected = define_route(a, x.data() + row * stride);
    for (std::int64_t rank = 0; rank < a.used; ++rank) {
      expect_equal(static_cast<std::int64_t>(experts[at(row * to_stride + rank)]), expected.ids[at(rank)], "expert");
      expect_near(weights[at(row * to_stride + rank)], expected.weights[at(rank)], 2e-6, "weight");
    }
    expect_equal(static_cast<std::int64_t>(experts[at(row * to_stride + a.used)]), -7, "beyond the row");
  }
  expect_equal(static_cast<std::int64_t>(experts[at(kRows * to_stride)]), -7, "beyond the rows");
}

void check_routes() {
  struct Size {
    std::int64_t experts, used, groups, groups_used;
  };
  for (const Size size : {Size{1, 1, 1, 1}, Size{8, 2, 1, 1}, Size{33, 33, 1, 1}, Size{60, 4, 10, 3},
                          Size{64, 6, 32, 7}, Size{256, 8, 8, 4}, Size{1024, 64, 1, 1}, Size{1024, 64, 64, 40},
                          Size{kMaxExperts, 9, kMaxExperts / 2, kMaxExperts / 4}}) {
    for (int options = 0; options < 16; ++options) {
      RouteArguments a{};
      a.num_experts = size.experts;
      a.used = size.used;
      a.groups = size.groups;
      a.groups_used = size.groups_used;
      a.is_sigmoid = options & 1;
      a.normalize = options & 2;
      a.factor = options & 2 ? 2.5f : 1.0f;
      const bool biased = options & 4;
      const bool grouped = size.groups > 1;
      a.two_best = grouped && (options & 8);
      // Sums of scores are equal or not as they are rounded: only logits are compared where they tie.
      const bool with_ties = !biased && !a.two_best;
      if (!grouped && (options & 8)) continue;
      check_route(a, with_ties, biased);
    }
  }
}

/// NaNs lose; those that must be used come by id. Infinities and zeros of both signs are numbers like others.
void check_hostile_route() {
  const std::vector<float> x = {kNan, 1.0f,      kNan,       -0.0f, 0.0f,      -3.0f, 0.0f,  kNan,  //
                                kNan, kNan,      kNan,       kNan,  kNan,      kNan,  kNan,  kNan,  //
                                1.0f, kInfinity, -kInfinity, 2.0f,  kInfinity, kNan,  -1.0f, -kInfinity};
  const std::int64_t expected[3][8] = {{1, 3, 4, 6, 5, 0, 2, 7}, {0, 1, 2, 3, 4, 5, 6, 7}, {1, 4, 3, 0, 6, 2, 7, 5}};
  for (int options = 0; options < 4; ++options) {
    std::vector<float> experts(24), weights(24);
    RouteArguments a{};
    a.x = rows(x, 8);
    a.experts = rows(experts, 8);
    a.weights = rows(weights, 8);
    a.num_experts = a.used = 8;
    a.groups = a.groups_used = 1;
    a.factor = 1.0f;
    a.is_sigmoid = options & 1;
    a.normalize = options & 2;
    TestBatch batch(3);
    batch.launch(Kernel::kRoute, a);
    for (std::size_t i = 0; i < 24; ++i) {
      expect_equal(static_cast<std::int64_t>(experts[i]), expected[i / 8][i % 8], "expert beside NaNs");
    }
    // With groups and biases nothing is promised but ids that exist, each once.
    a.groups = 4;
    a.groups_used = 2;
    a.used = 4;
    a.two_best = options & 1;
    batch.launch(Kernel::kRoute, a);
    for (std::size_t row = 0; row < 3; ++row) {
      std::vector<float> ids(experts.begin() + static_cast<std::ptrdiff_t>(8 * row),
                             experts.begin() + static_cast<std::ptrdiff_t>(8 * row + 4));
      std::sort(ids.begin(), ids.end());
      expect_equal(std::adjacent_find(ids.begin(), ids.end()) == ids.end(), 1, "ids differ");
      expect_equal(ids.front() >= 0.0f && ids.back() < 8.0f, 1, "ids exist");
    }
  }
}

void check_sort(std::int64_t num_experts, std::int32_t num_rows, std::int64_t used, bool is_skewed, bool outputs) {
  const std::int64_t count = num_rows * used, stride = used + 2;
  std::mt19937 generator(static_cast<unsigned>(num_experts + count));
  std::vector<float> experts(at(num_rows * stride), -1e9f);
  std::vector<std::int64_t> ids;
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (std::int64_t rank = 0; rank < used; ++rank) {
      std::int64_t id = static_cast<std::int64_t>(generator() % static_cast<unsigned>(num_experts));
      if (is_skewed && generator() % 4 != 0) id = num_experts / 2;
      ids.push_back(id);
      experts[at(row * stride + rank)] = static_cast<float>(id);
    }
  }
  ExpertPairs pairs{};
  pairs.num_experts = num_experts;
  pairs.used = used;
  pairs.max_pairs = count + 2 * used;
  std::vector<std::int32_t> groups(at(1 + 3 * pairs.max_groups()), -5), order(at(pairs.max_pairs), -5), places = order;
  pairs.groups = groups.data();
  pairs.pairs = order.data();
  pairs.places = places.data();
  TestBatch batch(num_rows);
  if (outputs) batch.counts[0] += 7;
  batch.launch(Kernel::kSortPairs, SortPairsArguments{rows(experts, stride, outputs), pairs});
  std::vector<std::int32_t> expected(at(count));
  std::iota(expected.begin(), expected.end(), 0);
  std::stable_sort(expected.begin(), expected.end(),
                   [&](std::int32_t a, std::int32_t b) { return ids[at(a)] < ids[at(b)]; });
  std::int32_t group = 0;
  for (std::int32_t place = 0; place < count; ++place) {
    const std::int32_t pair = expected[at(place)];
    expect_equal(order[at(place)], pair, "sorted pair");
    expect_equal(places[at(pair)], place, "place");
    if (place > 0 && ids[at(pair)] == ids[at(expected[at(place - 1)])]) continue;
    std::int32_t size = 0;
    while (place + size < count && ids[at(expected[at(place + size)])] == ids[at(pair)]) ++size;
    expect_equal(groups[at(1 + 3 * group)], ids[at(pair)], "expert of a group");
    expect_equal(groups[at(2 + 3 * group)], place, "first of a group");
    expect_equal(groups[at(3 + 3 * group)], size, "size of a group");
    ++group;
  }
  expect_equal(groups[0], group, "groups");
  expect_equal(order[at(count)], -5, "beyond the pairs");
}

void check_sorts() {
  for (const std::int64_t experts : {1, 8, 33, 256, 700, 1024, int{kMaxExperts}}) {
    for (const std::int32_t num_rows : {0, 1, 5, 300}) {
      check_sort(experts, num_rows, std::min<std::int64_t>(experts, 8), false, false);
      check_sort(experts, num_rows, 1, true, true);
    }
  }
  check_sort(128, 4000, 8, true, false);
  check_sort(1024, 40, 64, true, false);
}

void check_combine(std::int64_t n, std::int64_t used, bool weighted, bool with_residual) {
  constexpr std::int32_t kRows = 5;
  const std::int64_t count = kRows * used, x_stride = n + 1, w_stride = used + 2;
  const std::vector<float> x = random_floats(count * x_stride, 1), weights = random_floats(kRows * w_stride, 2);
  const std::vector<float> residual = random_floats(kRows * n, 3);
  std::vector<std::int32_t> places(at(count));
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), std::mt19937(4));
  std::vector<float> y(at(kRows * n + 1), -7.0f);
  CombineArguments a{};
  a.x = rows(x, x_stride);
  if (weighted) a.weights = rows(weights, w_stride);
  if (with_residual) a.residual = rows(residual, n);
  a.y = rows(y, n);
  a.pairs.places = places.data();
  a.pairs.used = used;
  a.n = n;
  TestBatch(kRows).launch(Kernel::kCombine, a);
  for (std::int64_t row = 0; row < kRows; ++row) {
    for (std::int64_t i = 0; i < n; ++i) {
      float expected = 0.0f;
      for (std::int64_t rank = 0; rank < used; ++rank) {
        const float product = x[at(places[at(row * used + rank)] * x_stride + i)] *
                              (weighted ? weights[at(row * w_stride + rank)] : 1.0f);
        expected = rank == 0 ? product : expected + product;
      }
      if (with_residual) expected += residual[at(row * n + i)];
      expect_near(y[at(row * n + i)], expected, 0.0, "combined");
    }
  }
  expect_equal(static_cast<std::int64_t>(y.back()), -7, "beyond the rows");
}

}  // namespace

int main() {
  check_routes();
  check_hostile_route();
  check_sorts();
  for (const std::int64_t n : {1, 31, 300, 1024}) {
    check_combine(n, 8, true, true);
    check_combine(n, 1, false, false);
    check_combine(n, 5, true, false);
  }
  return finish_test();
}
