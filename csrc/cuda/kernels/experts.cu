/// A mixture of experts around its matmuls: rows find their experts, pairs of rows and experts are sorted by expert,
/// and each row sums up what its experts say. Waiting bounds the first two, which touch little memory; memory bounds
/// the last.
#include "base/exponential.h"
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kRouteThreads = kWarp;
constexpr int kSortThreads = 512;
constexpr int kSortWarps = kSortThreads / kWarp;
constexpr int kCombineThreads = 256;

/// e^x for x <= 0; a NaN stays one.
__device__ float power(float x) { return x == x ? exp_nonpositive(x) : x; }

__device__ float sigmoid_score(float x) {
  const float small = power(x < 0.0f ? x : -x);
  return (x < 0.0f ? small : 1.0f) / (1.0f + small);
}

/// A number that is larger for what wins: the larger value, the lower index among equal ones; NaNs lose. Never 0.
__device__ std::uint64_t rank_key(float value, std::uint32_t index) {
  std::uint32_t order = 0;
  if (value == value) {
    const std::uint32_t bits = value == 0.0f ? 0u : float_to_bits(value);
    order = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<std::uint64_t>(order) << 32 | ~index;
}
__device__ std::uint32_t index_of(std::uint64_t key) { return ~static_cast<std::uint32_t>(key); }

/// The largest key below `limit` of the values that a lane has: those at lane, lane + 32, ...; 0 if there is none.
__device__ std::uint64_t best_of_lane(const float* values, std::uint32_t size, std::uint64_t limit) {
  std::uint64_t best = 0;
  for (std::uint32_t i = threadIdx.x; i < size; i += kWarp) {
    const std::uint64_t key = rank_key(values[i], i);
    if (key < limit && key > best) best = key;
  }
  return best;
}
__device__ std::uint64_t warp_best(std::uint64_t key) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kAllLanes, key, distance);
    key = other > key ? other : key;
  }
  return key;
}

/// Ids of the `count` largest of `values`, the largest first; count is at most size. Keys are all different, so the
/// next one is the largest below the last, and only the lane that had that looks for another.
__device__ void find_best(const float* values, std::uint32_t size, std::uint32_t count, std::uint32_t* ids) {
  std::uint64_t mine = best_of_lane(values, size, ~std::uint64_t{0});
  for (std::uint32_t rank = 0; rank < count; ++rank) {
    const std::uint64_t best = warp_best(mine);
    if (threadIdx.x == 0) ids[rank] = index_of(best);
    if (mine == best) mine = best_of_lane(values, size, best);
  }
  __syncwarp();
}

__device__ float largest_of(const float* values, std::uint32_t size) {
  return values[index_of(warp_best(best_of_lane(values, size, ~std::uint64_t{0})))];
}

/// The sum of power(logit - largest), each lane its own, then over the warp.
__device__ float sum_powers(const float* logits, std::uint32_t size, float largest) {
  float sum = 0.0f;
  for (std::uint32_t i = threadIdx.x; i < size; i += kWarp) sum = sum + power(logits[i] - largest);
  return warp_sum(sum);
}

/// The value of the best of each group, or of its two best together. A lane has a group; they begin at different places
/// so as to meet different banks.
__device__ void score_groups(const RouteArguments& a, const float* values, float* scores) {
  const auto groups = static_cast<std::uint32_t>(a.groups);
  const std::uint32_t size = static_cast<std::uint32_t>(a.num_experts) / groups;
  for (std::uint32_t g = threadIdx.x; g < groups; g += kWarp) {
    const float* const group = values + g * size;
    std::uint64_t best = 0, second = 0;
    std::uint32_t i = g % size;
    for (std::uint32_t left = size; left > 0; --left) {
      const std::uint64_t key = rank_key(group[i], i);
      if (key > best) {
        second = best;
        best = key;
      } else if (key > second) {
        second = key;
      }
      i = i + 1 == size ? 0 : i + 1;
    }
    scores[g] = group[index_of(best)];
    if (a.two_best) scores[g] = scores[g] + group[index_of(second)];
  }
  __syncwarp();
}

/// Floats and ids of one row in shared memory.
struct RouteScratch {
  float *logits, *values, *group_scores, *weights;
  std::uint32_t *chosen_groups, *is_chosen, *ids;

  __device__ RouteScratch(const RouteArguments& a, std::uint8_t* memory) {
    logits = reinterpret_cast<float*>(memory);
    values = logits + a.num_experts;
    group_scores = values + a.num_experts;
    weights = group_scores + a.groups;
    chosen_groups = reinterpret_cast<std::uint32_t*>(weights + a.used);
    is_chosen = chosen_groups + a.groups;
    ids = is_chosen + a.groups;
  }
  static constexpr std::int64_t bytes(std::int64_t experts, std::int64_t groups, std::int64_t used) {
    return (2 * experts + 3 * groups + 2 * used) * 4;
  }
};
static_assert(RouteScratch::bytes(kMaxExperts, kMaxExperts, kMaxExperts) <= kLeastSharedBytes);

/// Ids of the experts of a row. Without a bias these go by logits, which rounding does not make equal as it does
/// scores.
__device__ void choose(const RouteArguments& a, const RouteScratch& s) {
  const auto experts = static_cast<std::uint32_t>(a.num_experts);
  const auto groups = static_cast<std::uint32_t>(a.groups);
  const auto used = static_cast<std::uint32_t>(a.used);
  const float* values = s.logits;
  if (a.bias != nullptr || (groups > 1 && a.two_best)) {
    const float largest = a.is_sigmoid ? 0.0f : largest_of(s.logits, experts);
    const float sum = a.is_sigmoid ? 0.0f : sum_powers(s.logits, experts, largest);
    for (std::uint32_t i = threadIdx.x; i < experts; i += kWarp) {
      const float score = a.is_sigmoid ? sigmoid_score(s.logits[i]) : power(s.logits[i] - largest) / sum;
      s.values[i] = a.bias == nullptr ? score : score + a.bias[i];
    }
    values = s.values;
    __syncwarp();
  }
  if (groups > 1) {
    const std::uint32_t size = experts / groups;
    score_groups(a, values, s.group_scores);
    find_best(s.group_scores, groups, static_cast<std::uint32_t>(a.groups_used), s.chosen_groups);
    for (std::uint32_t g = threadIdx.x; g < groups; g += kWarp) s.is_chosen[g] = 0;
    __syncwarp();
    for (std::uint32_t i = threadIdx.x; i < a.groups_used; i += kWarp) s.is_chosen[s.chosen_groups[i]] = 1;
    __syncwarp();
    const float* const from = a.bias == nullptr ? s.logits : s.values;
    for (std::uint32_t i = threadIdx.x; i < experts; i += kWarp) {
      s.values[i] = s.is_chosen[i / size] != 0 ? from[i] : bits_to_float(0x7FC00000u);
    }
    values = s.values;
    __syncwarp();
  }
  find_best(values, experts, used, s.ids);
}

/// A warp for each row. Weights that are normalised are summed by rank; the sum over all experts is taken by lanes.
__global__ void route(RouteArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  if (row >= num_rows(batch, a.x.outputs)) return;
  const RouteScratch s(a, dynamic_shared());
  const auto experts = static_cast<std::uint32_t>(a.num_experts);
  const auto used = static_cast<std::uint32_t>(a.used);
  const float* const x = row_of(a.x, row);
  for (std::uint32_t i = threadIdx.x; i < experts; i += kWarp) s.logits[i] = x[i];
  __syncwarp();
  choose(a, s);
  for (std::uint32_t rank = threadIdx.x; rank < used; rank += kWarp) s.weights[rank] = s.logits[s.ids[rank]];
  __syncwarp();
  const float largest =
      a.is_sigmoid ? 0.0f : (a.normalize ? largest_of(s.weights, used) : largest_of(s.logits, experts));
  __syncwarp();  // everybody has read the weights that change now
  for (std::uint32_t rank = threadIdx.x; rank < used; rank += kWarp) {
    s.weights[rank] = a.is_sigmoid ? sigmoid_score(s.weights[rank]) : power(s.weights[rank] - largest);
  }
  __syncwarp();
  float sum = 1.0f;
  if (a.normalize) {
    sum = 0.0f;
    for (std::uint32_t rank = 0; rank < used; ++rank) sum = sum + s.weights[rank];
  } else if (!a.is_sigmoid) {
    sum = sum_powers(s.logits, experts, largest);
  }
  for (std::uint32_t rank = threadIdx.x; rank < used; rank += kWarp) {
    float weight = s.weights[rank];
    if (a.normalize || !a.is_sigmoid) weight = weight / sum;
    if (a.factor != 1.0f) weight = weight * a.factor;
    row_of(a.weights, row)[rank] = weight;
    row_of(a.experts, row)[rank] = static_cast<float>(s.ids[rank]);
  }
}

/// Calls fn(pair, expert) for pairs begin .. end in order, 32 at a time, one in each lane; expert is -1 in lanes that
/// have none. What is loaded is asked for four times ahead.
template <class Fn>
__device__ void each_pair(const SortPairsArguments& a, std::int32_t begin, std::int32_t end, Fn fn) {
  constexpr int kAhead = 4;
  const auto used = static_cast<std::int32_t>(a.pairs.used);
  for (std::int32_t first = begin; first < end; first += kAhead * kWarp) {
    std::int32_t experts[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const std::int32_t pair = first + j * kWarp + lane_id();
      experts[j] = -1;
      if (pair >= end) continue;
      const float id = row_of(a.experts, pair / used)[pair % used];
      experts[j] = id >= 0.0f && id < static_cast<float>(a.pairs.num_experts) ? static_cast<std::int32_t>(id) : 0;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) fn(first + j * kWarp + lane_id(), experts[j]);
  }
}

/// One block sorts by counting: each of up to `max_runs` warps counts a run of pairs, expert by expert; sums over the
/// runs, then over the experts say where each run's pairs of an expert begin. Only whole numbers are summed, and no two
/// warps write to the same counter, so nothing depends on time.
__global__ void __launch_bounds__(kSortThreads) sort_pairs(SortPairsArguments a, DeviceBatch batch, int max_runs) {
  __shared__ std::int32_t warp_pairs[kSortWarps], warp_groups[kSortWarps];
  auto* const counters = reinterpret_cast<std::int32_t*>(dynamic_shared());  // [run][expert]
  wait_for_previous();
  let_next_begin();
  const auto experts = static_cast<std::int32_t>(a.pairs.num_experts);
  const std::int32_t count = num_rows(batch, a.experts.outputs) * static_cast<std::int32_t>(a.pairs.used);
  const std::int32_t pieces = (count + kWarp - 1) / kWarp;
  const std::int32_t runs = pieces < max_runs ? pieces : max_runs;
  const std::int32_t run = runs == 0 ? 0 : (pieces + runs - 1) / runs * kWarp;
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < runs * experts; i += kSortThreads) counters[i] = 0;
  __syncthreads();
  // Warps beyond the runs have none: begin is count or more.
  const std::int32_t begin = warp_id() * run;
  const std::int32_t end = begin + run < count ? begin + run : count;
  std::int32_t* const mine = counters + static_cast<std::int64_t>(warp_id()) * experts;
  const unsigned lanes_before = (1u << lane_id()) - 1u;
  const auto is_first = [&](unsigned same) { return (same & lanes_before) == 0; };
  each_pair(a, begin, end, [&](std::int32_t, std::int32_t expert) {
    const unsigned same = __match_any_sync(kAllLanes, expert);
    if (expert >= 0 && is_first(same)) mine[expert] += __popc(same);
    __syncwarp();
  });
  __syncthreads();
  std::int32_t pairs_done = 0, groups_done = 0;  // of experts below `first`
  for (std::int32_t first = 0; first < experts; first += kSortThreads) {
    const std::int32_t expert = first + static_cast<std::int32_t>(threadIdx.x);
    std::int32_t total = 0;
    for (std::int32_t r = 0; expert < experts && r < runs; ++r) {
      std::int32_t& counter = counters[r * experts + expert];
      const std::int32_t here = counter;
      counter = total;
      total += here;
    }
    const unsigned present = __ballot_sync(kAllLanes, total > 0);
    std::int32_t up_to = total;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const std::int32_t other = __shfl_sync(kAllLanes, up_to, lane_id() >= distance ? lane_id() - distance : 0);
      if (lane_id() >= distance) up_to += other;
    }
    if (lane_id() == kWarp - 1) {
      warp_pairs[warp_id()] = up_to;
      warp_groups[warp_id()] = __popc(present);
    }
    __syncthreads();
    std::int32_t place = pairs_done + up_to - total;
    std::int32_t index = groups_done + __popc(present & lanes_before);
    for (int w = 0; w < kSortWarps; ++w) {
      if (w < warp_id()) {
        place += warp_pairs[w];
        index += warp_groups[w];
      }
      pairs_done += warp_pairs[w];
      groups_done += warp_groups[w];
    }
    if (total > 0) {
      std::int32_t* const group = a.pairs.groups + 1 + 3 * index;
      group[0] = expert;
      group[1] = place;
      group[2] = total;
      for (std::int32_t r = 0; r < runs; ++r) counters[r * experts + expert] += place;
    }
    __syncthreads();  // the counters are complete, and the sums of warps read
  }
  if (threadIdx.x == 0) a.pairs.groups[0] = groups_done;
  each_pair(a, begin, end, [&](std::int32_t pair, std::int32_t expert) {
    const unsigned same = __match_any_sync(kAllLanes, expert);
    const std::int32_t first = expert >= 0 ? mine[expert] : 0;
    __syncwarp();
    if (expert >= 0) {
      if (is_first(same)) mine[expert] = first + __popc(same);
      const std::int32_t place = first + __popc(same & lanes_before);
      a.pairs.pairs[place] = pair;
      a.pairs.places[pair] = place;
    }
    __syncwarp();
  });
}

/// A thread for each element: what the CPU computes, bit for bit.
__global__ void combine(CombineArguments a, DeviceBatch batch, unsigned parts) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / parts);
  if (row >= num_rows(batch, a.y.outputs)) return;
  const std::int64_t i = std::int64_t{blockIdx.x % parts} * kCombineThreads + threadIdx.x;
  if (i >= a.n) return;
  const std::int32_t* const places = a.pairs.places + std::int64_t{row} * a.pairs.used;
  const float* const weights = a.weights.data == nullptr ? nullptr : row_of(a.weights, row);
  const auto weighed = [&](std::int64_t rank) {
    const float x = row_of(a.x, places[rank])[i];
    return weights == nullptr ? x : x * weights[rank];
  };
  float sum = weighed(0);
#pragma unroll 4
  for (std::int64_t rank = 1; rank < a.pairs.used; ++rank) sum = sum + weighed(rank);
  if (a.residual.data != nullptr) sum = sum + row_of(a.residual, row)[i];
  row_of(a.y, row)[i] = sum;
}

}  // namespace

Status launch_route(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const RouteArguments*>(arguments);
  const auto bytes = static_cast<std::size_t>(RouteScratch::bytes(a.num_experts, a.groups, a.used));
  return cuda::launch(route, max_rows(launch, a.x.outputs), kRouteThreads, bytes, launch.stream, a, *launch.batch);
}

Status launch_sort_pairs(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const SortPairsArguments*>(arguments);
  constexpr std::int64_t kCounters = 8192;  // of 4 bytes
  static_assert(kCounters >= kMaxExperts);
  std::int64_t runs = kCounters / a.pairs.num_experts;
  runs = runs > kSortWarps ? kSortWarps : runs;
  return cuda::launch(sort_pairs, 1, kSortThreads, static_cast<std::size_t>(runs * a.pairs.num_experts) * 4,
                      launch.stream, a, *launch.batch, static_cast<int>(runs));
}

Status launch_combine(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const CombineArguments*>(arguments);
  const auto parts = static_cast<unsigned>((a.n + kCombineThreads - 1) / kCombineThreads);
  return cuda::launch(combine, static_cast<unsigned>(max_rows(launch, a.y.outputs)) * parts, kCombineThreads, 0,
                      launch.stream, a, *launch.batch, parts);
}

}  // namespace sterna::cuda
