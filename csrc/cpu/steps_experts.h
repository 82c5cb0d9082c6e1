/// The steps of a mixture of experts: each row finds its experts, each expert multiplies the rows it got, and each row
/// sums up what its experts say. A result depends neither on the batch nor on how many rows an expert got.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "cpu/steps.h"

namespace sterna::cpu {

/// Logits of all experts -> ids (as floats) and weights of the `used` best, the best first.
///
/// Without groups and bias the largest logits win, ties go to the lower id. A softmax weight is exp(logit - largest)
/// over the sum of these, of the chosen ones by rank with `normalize`, else of all by id; a sigmoid weight is
/// 1 / (1 + exp(-logit)), with `normalize` over the sum of the chosen ones. The last thing is the factor.
/// With a bias it is the largest scores + bias that win, the score being what a weight is without `normalize`. With
/// groups of neighbouring experts only those of the `groups_used` best may win: the groups with the best expert, or
/// with the largest sum of the scores (and biases) of its two best.
struct RouteStep {
  Rows x, experts, weights;
  std::int64_t num_experts, used;
  bool is_sigmoid, normalize;
  float factor;
  const float* bias;  // null: none
  std::int64_t groups, groups_used;
  bool two_best;
};
void run_route(const void* arguments, const StepContext& context);

/// The rows of one expert: `count` of the sorted pairs, from `first` on.
struct ExpertGroup {
  std::int32_t expert;
  std::int32_t first;
  std::int32_t count;
};

/// The pairs (row, rank) of a batch, numbered row * used + rank, sorted by expert: in one buffer of the arena.
struct ExpertPairs {
  std::uint8_t* base = nullptr;
  std::int64_t num_experts = 0;
  std::int64_t used = 0;
  std::int64_t max_pairs = 0;

  std::int64_t max_groups() const { return std::min(num_experts, max_pairs); }
  std::int64_t bytes() const { return 64 + max_groups() * 12 + 8 * max_pairs; }
  /// Experts that have rows, ascending.
  std::span<const ExpertGroup> groups() const { return {group_data(), static_cast<std::size_t>(count())}; }
  /// By place among the sorted: the pair.
  std::int32_t* pairs() const { return reinterpret_cast<std::int32_t*>(group_data() + max_groups()); }
  /// By pair: its place among the sorted.
  std::int32_t* places() const { return pairs() + max_pairs; }

  std::int32_t& count() const { return *reinterpret_cast<std::int32_t*>(base); }
  ExpertGroup* group_data() const { return reinterpret_cast<ExpertGroup*>(base + 64); }
};

struct SortPairsStep {
  Rows experts;
  ExpertPairs pairs;
};
void run_sort_pairs(const void* arguments, const StepContext& context);

/// Tiles of the rows of all groups. Every group begins with a tile of its own.
struct ExpertTiles {
  TileSpace first;
  std::int64_t row_bytes = 0;  // in whichever form a row has more

  ExpertTiles() = default;
  ExpertTiles(const TileSpace& tiles, const KernelTable& kernels);
  /// Enough for any groups of `pairs`.
  std::int64_t bytes(const ExpertPairs& pairs) const;
  TileSpace of_group(const ExpertPairs& pairs, std::int64_t index) const;
};

/// Prepares each expert's rows: those of x that chose it, times their weight where `weights` has data; or with
/// `is_sorted` the sorted pairs' own.
struct ExpertPrepareStep {
  Rows x, weights;
  bool is_sorted;
  ExpertPairs pairs;
  ExpertTiles tiles;
};
void run_expert_prepare(const void* arguments, const StepContext& context);

/// Row `place` of y = w x + bias, or activation(w x + bias) * (up x + up_bias), of the pair's expert.
struct ExpertMatmulStep {
  std::span<const PackedMatrix> w, up;  // up may be empty
  const float *bias, *up_bias;          // [experts][n]; null: none
  ActivationKind glu;
  ExpertPairs pairs;
  ExpertTiles tiles;
  Rows y;
};
void run_expert_matmul(const void* arguments, const StepContext& context);
void warm_expert_matmul(const void* arguments, const StepContext& context);

/// y = sum over ranks, ascending, of weight * x (+ residual): each product is rounded, then added. Without weights
/// (no data) of x alone.
struct CombineStep {
  Rows x;  // by place among the sorted pairs
  Rows weights, residual, y;
  ExpertPairs pairs;
  std::int64_t n;
};
void run_combine(const void* arguments, const StepContext& context);

}  // namespace sterna::cpu
