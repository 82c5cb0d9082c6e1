/// The largest logits of a row, in order: what a token is sampled from. First the largest of every 32 logits, by all
/// multiprocessors, which read the row once. The k groups with the largest of these hold the k largest logits, so that
/// a block per row can do the rest: it finds the k-th largest number by its digits, of the groups and then of their
/// logits, and ranks what is left.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = kWarp;  // logits
constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarp;
constexpr int kDigits = 256;
/// Of a group with a logit that is not finite.
constexpr std::uint32_t kNotFinite = 0xFFFFFFFFu;

/// Numbers in the order of keys; the two zeros are equal.
__device__ std::uint32_t key_of(float x) {
  const std::uint32_t bits = x == 0.0f ? 0u : float_to_bits(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The key of each group's largest logit. A warp for a group.
__global__ void group_maxima(LargestArguments a, DeviceBatch batch) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.y);
  if (row >= num_outputs(batch) || batch.largest[row] == 0) return;
  const std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * (kThreads / kWarp) + warp_id();
  if (group >= a.groups) return;
  const std::int64_t at = group * kGroup + lane_id();
  std::uint32_t key = 0;  // less than any number's
  if (at < a.n) {
    const float x = row_of(a.logits, row)[at];
    key = (float_to_bits(x) & 0x7F800000u) == 0x7F800000u ? kNotFinite : key_of(x);
  }
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, key, distance);
    key = other > key ? other : key;
  }
  if (lane_id() == 0) a.maxima[row * a.groups + group] = key;
}

/// The k-th largest of some keys, and how many of the k equal it.
struct Bar {
  std::uint32_t key;
  std::int32_t equal;
};

/// Finds it for keys key_at(0) to key_at(n - 1), 1 <= k <= n, digit by digit from the highest. All threads of the block
/// come here, and get it.
template <class KeyAt>
__device__ Bar find_bar(std::int64_t n, std::int32_t k, const KeyAt& key_at) {
  __shared__ std::int32_t counts[kDigits];
  __shared__ Bar found;
  std::uint32_t prefix = 0, mask = 0;
  for (int shift = 24; shift >= 0; shift -= 8) {
    __syncthreads();  // of the digit before, everybody has read
    if (threadIdx.x < kDigits) counts[threadIdx.x] = 0;
    __syncthreads();
    for (std::int64_t i = threadIdx.x; i < n; i += kSelectThreads) {
      const std::uint32_t key = key_at(i);
      if ((key & mask) == prefix) atomicAdd(&counts[(key >> shift) & (kDigits - 1)], 1);
    }
    __syncthreads();
    if (warp_id() == 0) {
      // A lane has eight digits, the first lane the largest ones.
      constexpr int kOwn = kDigits / kWarp;
      const int top = kDigits - 1 - lane_id() * kOwn;
      std::int32_t own = 0;
      for (int i = 0; i < kOwn; ++i) own += counts[top - i];
      std::int32_t up_to = own;
      for (int distance = 1; distance < kWarp; distance *= 2) {
        const bool has_before = lane_id() >= distance;
        const std::int32_t before = __shfl_sync(kAllLanes, up_to, has_before ? lane_id() - distance : 0);
        up_to += has_before ? before : 0;
      }
      std::int32_t above = up_to - own;
      if (above < k && k <= up_to) {
        int digit = top;
        while (above + counts[digit] < k) above += counts[digit--];
        found = {prefix | static_cast<std::uint32_t>(digit) << shift, k - above};
      }
    }
    __syncthreads();
    prefix = found.key;
    k = found.equal;
    mask |= static_cast<std::uint32_t>(kDigits - 1) << shift;
  }
  return {prefix, k};
}

/// Calls `take(place, i)` for the keys above the bar and the first of those that equal it, in the order of i; place
/// counts from 0. All threads of the block come here.
template <class KeyAt, class Take>
__device__ void take_largest(std::int64_t n, const Bar& bar, const KeyAt& key_at, const Take& take) {
  __shared__ std::int32_t above_of[kSelectWarps], equal_of[kSelectWarps];
  std::int32_t above_before = 0, equal_before = 0;
  const unsigned lanes_before = (1u << lane_id()) - 1;
  for (std::int64_t first = 0; first < n; first += kSelectThreads) {
    const std::int64_t i = first + threadIdx.x;
    const std::uint32_t key = i < n ? key_at(i) : 0;
    const bool is_above = i < n && key > bar.key;
    const bool is_equal = i < n && key == bar.key;
    const unsigned above = __ballot_sync(kAllLanes, is_above);
    const unsigned equal = __ballot_sync(kAllLanes, is_equal);
    __syncthreads();  // of the part before, everybody has read
    if (lane_id() == 0) {
      above_of[warp_id()] = __popc(above);
      equal_of[warp_id()] = __popc(equal);
    }
    __syncthreads();
    std::int32_t my_above = above_before + __popc(above & lanes_before);
    std::int32_t my_equal = equal_before + __popc(equal & lanes_before);
    for (int w = 0; w < kSelectWarps; ++w) {
      if (w < warp_id()) {
        my_above += above_of[w];
        my_equal += equal_of[w];
      }
      above_before += above_of[w];
      equal_before += equal_of[w];
    }
    if (is_above || (is_equal && my_equal < bar.equal)) {
      take(my_above + (my_equal < bar.equal ? my_equal : bar.equal), i);
    }
  }
  __syncthreads();
}

/// A block for a row. Entry 0 of the result says how many follow.
__global__ void __launch_bounds__(kSelectThreads) select_largest(LargestArguments a, DeviceBatch batch) {
  __shared__ std::int32_t groups[kMostLargest];
  __shared__ std::uint32_t keys[kMostLargest];
  __shared__ std::int32_t tokens[kMostLargest];
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x);
  if (row >= num_outputs(batch)) return;
  std::int32_t wanted = batch.largest[row];
  wanted = wanted < a.most ? wanted : static_cast<std::int32_t>(a.most);
  const auto k = static_cast<std::int32_t>(wanted < a.n ? wanted : a.n);
  if (k == 0) return;
  TokenLogit* const result = a.largest + row * (a.most + 1);
  const std::uint32_t* const maxima = a.maxima + row * a.groups;
  const float* const logits = row_of(a.logits, row);

  const auto num_groups = static_cast<std::int32_t>(k < a.groups ? k : a.groups);
  const auto key_of_group = [&](std::int64_t i) { return maxima[i]; };
  take_largest(a.groups, find_bar(a.groups, num_groups, key_of_group), key_of_group,
               [&](std::int32_t place, std::int64_t i) {
                 groups[place] = static_cast<std::int32_t>(i);
                 keys[place] = maxima[i];
               });
  // A group that is not finite comes before all others.
  bool is_finite = true;
  for (std::int32_t i = 0; i < num_groups; ++i) is_finite = is_finite && keys[i] != kNotFinite;
  if (!is_finite) {
    if (threadIdx.x == 0) result[0] = {0, 0.0f};
    return;
  }
  __syncthreads();

  const auto token_at = [&](std::int64_t i) {
    return static_cast<std::int64_t>(groups[i / kGroup]) * kGroup + i % kGroup;
  };
  const auto key_at = [&](std::int64_t i) {
    const std::int64_t token = token_at(i);
    return token < a.n ? key_of(logits[token]) : 0u;
  };
  const std::int64_t count = static_cast<std::int64_t>(num_groups) * kGroup;
  take_largest(count, find_bar(count, k, key_at), key_at, [&](std::int32_t place, std::int64_t i) {
    keys[place] = key_at(i);
    tokens[place] = static_cast<std::int32_t>(token_at(i));
  });
  // Each finds its rank; a lower place is a lower token.
  for (std::int32_t i = static_cast<std::int32_t>(threadIdx.x); i < k; i += kSelectThreads) {
    std::int32_t rank = 0;
    for (std::int32_t j = 0; j < k; ++j) rank += keys[j] > keys[i] || (keys[j] == keys[i] && j < i) ? 1 : 0;
    result[1 + rank] = {tokens[i], logits[tokens[i]]};
  }
  if (threadIdx.x == 0) result[0] = {k, 0.0f};
}

}  // namespace

Status launch_largest(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const LargestArguments*>(arguments);
  constexpr std::int64_t kGroupsPerBlock = kThreads / kWarp;
  const dim3 grid(static_cast<unsigned>((a.groups + kGroupsPerBlock - 1) / kGroupsPerBlock),
                  static_cast<unsigned>(launch.num_outputs));
  const Status status = cuda::launch(group_maxima, grid, kThreads, 0, launch.stream, a, *launch.batch);
  if (status != 0) return status;
  return cuda::launch(select_largest, static_cast<unsigned>(launch.num_outputs), kSelectThreads, 0, launch.stream, a,
                      *launch.batch);
}

}  // namespace sterna::cuda
