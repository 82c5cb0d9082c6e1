/// Attention. A block has the queries of neighbouring rows of a sequence that share a head's keys, which it reads once.
/// Decoding takes the time of reading K and V from memory: several blocks share a row's spans then, and the last of
/// them merges what they found. Prompts take the time of the tensor cores: a block walks all spans and merges them
/// itself, by the same operations.
#include "cuda/kernels/attention_float.cuh"
#include "cuda/kernels/attention_mma.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

/// Whether all of `blocks` blocks but this one have come here.
__device__ bool is_last_block(std::int32_t* arrivals, std::int32_t blocks) {
  __shared__ bool is_last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(arrivals, 1) == blocks - 1;
    if (is_last) *arrivals = 0;
  }
  __syncthreads();
  if (is_last) __threadfence();
  return is_last;
}

template <class Math>
__global__ void __launch_bounds__(kAttentionThreads, 2) attend(AttendArguments a, DeviceBatch batch, QueryShape shape) {
  wait_for_previous();
  let_next_begin();
  QueryBlock block;
  if (!find_queries(a, batch, shape, block)) return;
  // Rows ascend in position, so that both ends of what they see do.
  const KeyRange seen = {seen_keys(a, batch, block.first_row).first,
                         seen_keys(a, batch, block.first_row + block.rows - 1).last};
  const std::int32_t spans = seen.num_spans();
  const bool splits = gridDim.y > 1 && spans > 1 && spans <= a.max_spans;
  const auto most = static_cast<std::int32_t>(gridDim.y);
  const std::int32_t step = !splits ? 1 : spans < most ? spans : most;
  const auto own = static_cast<std::int32_t>(blockIdx.y);
  if (own >= step) return;

  std::uint8_t* shared = dynamic_shared();
  Math math(a, batch, block, shared + kStageBytes<Math::kType> * Math::kStages);
  // Volatile, so that they stay in local memory: they are met once a span, and registers are for the span's sums.
  volatile float merged[Math::kSums];
  if (!splits) Math::begin(merged);
  if (spans > 0) {
    __shared__ const std::uint8_t* bases[kAttentionThreads];
    KeyRing<Math::kType, Math::kStages> ring(a.layer, batch, block.sequence, block.key_head, seen,
                                             seen.first_span() + own, step, shared, bases);
    constexpr int kColumns = kChunkColumns<Math::kType>;
#pragma unroll 1
    for (std::int32_t i = own; i < spans; i += step) {
      const std::int32_t span = seen.first_span() + i;
      const std::int32_t first = span * kSpanTiles, last = first + kSpanTiles - 1;
      const std::int32_t first_seen = seen.first / kPageSlots, last_seen = seen.last / kPageSlots;
      math.begin_span();
#pragma unroll 1
      for (std::int32_t tile = first > first_seen ? first : first_seen; tile <= (last < last_seen ? last : last_seen);
           ++tile) {
        math.begin_tile();
#pragma unroll 1
        for (int chunk = 0; chunk * kColumns < a.layer.head_dim; ++chunk) math.add_products(ring.next(), chunk);
        math.weigh(tile * kPageSlots);
#pragma unroll
        for (int chunk = 0; chunk < Math::kValueChunks; ++chunk) {
          if (chunk * kColumns < a.layer.value_dim) math.add_values(ring.next(), chunk, tile * kPageSlots);
        }
      }
      math.end_span(span, splits, merged);
    }
  }
  if (!splits) {
    math.finish(merged);
    return;
  }
  if (!is_last_block(a.arrivals + std::int64_t{block.first_row} * a.query_heads + block.first_head, step)) return;
  for (int query = warp_id(); query < block.count(); query += kAttentionWarps) {
    const std::int32_t row = block.row(query);
    merge_partial<Math::kIsForFew>(a, row, block.head(query), seen_keys(a, batch, row).num_spans(), Math::kUnit);
  }
}

/// Of a block, its static variables included.
template <class Math>
constexpr std::size_t all_shared_bytes(std::int32_t head_dim) {
  constexpr std::size_t kStatic = kAttentionThreads * sizeof(void*) + 64;
  return kStageBytes<Math::kType> * Math::kStages + Math::shared_bytes(head_dim) + kStatic;
}

template <class Math>
Status launch_with(AttendArguments a, const Launch& launch) {
  if (!a.maxima.are_for(launch.num_tokens)) a.maxima.data = nullptr;
  a.max_spans = launch.num_tokens > 0 ? a.partial_room / launch.num_tokens : 0;
  const std::int32_t group = a.query_heads / a.layer.num_heads;
  QueryShape shape;
  shape.heads = group < Math::kQueries ? group : Math::kQueries;
  shape.rows = Math::kQueries / shape.heads;
  const std::int64_t places =
      shape.rows == 1 ? launch.num_tokens : launch.num_tokens / shape.rows + std::int64_t{launch.num_sequences};
  const std::int64_t items = places * a.layer.num_heads * ((group + shape.heads - 1) / shape.heads);
  // A few blocks for each multiprocessor of a large device.
  constexpr std::int64_t kBlocks = 528;
  std::int64_t splits = 1;
  if (a.partial != nullptr && items > 0) splits = (kBlocks + items - 1) / items;
  if (splits > a.max_spans) splits = a.max_spans;
  if (splits < 1) splits = 1;
  const std::size_t shared_bytes =
      static_cast<std::size_t>(kStageBytes<Math::kType> * Math::kStages) + Math::shared_bytes(a.layer.head_dim);
  return cuda::launch(attend<Math>, dim3(static_cast<unsigned>(items), static_cast<unsigned>(splits)),
                      kAttentionThreads, shared_bytes, launch.stream, a, *launch.batch, shape);
}

/// By the first whose shared memory the device has; results are the same. The last one's every device has.
template <class Math, class... Others>
Status launch_fitting(const AttendArguments& a, const Launch& launch) {
  if constexpr (sizeof...(Others) > 0) {
    if (all_shared_bytes<Math>(a.layer.head_dim) > static_cast<std::size_t>(max_shared_bytes())) {
      return launch_fitting<Others...>(a, launch);
    }
  } else {
    static_assert(all_shared_bytes<Math>(kMaxHeadDim) <= kLeastSharedBytes);
  }
  return launch_with<Math>(a, launch);
}

/// Many rows of a sequence fill a larger block, whose warps have queries of their own; results are the same, but maxima
/// are not left.
template <KvType type>
Status launch_mma(const AttendArguments& a, const Launch& launch) {
  const std::int64_t group = a.query_heads / a.layer.num_heads;
  const bool many =
      !a.maxima.are_for(launch.num_tokens) && launch.num_tokens * group >= std::int64_t{32} * launch.num_sequences;
  using Wide = MmaAttention<type, 4, 9, 3>;
  using Last = MmaAttention<type, 4, 9, type == KvType::kF16 ? 2 : 3>;
  if (a.layer.value_dim <= 128) {
    using Few = MmaAttention<type, 4, 2, 5>;
    return many ? launch_fitting<MmaAttention<type, 1, 2, 3>, Few, Last>(a, launch)
                : launch_fitting<Few, Last>(a, launch);
  }
  if (a.layer.value_dim <= 256) {
    using Few = MmaAttention<type, 4, 4, 4>;
    return many ? launch_fitting<MmaAttention<type, 2, 4, 3>, Few, Last>(a, launch)
                : launch_fitting<Few, Last>(a, launch);
  }
  return launch_fitting<Wide, Last>(a, launch);
}

Status launch_float(const AttendArguments& a, const Launch& launch) {
  using Last = FloatAttention<18, 2>;
  return a.layer.value_dim <= 128 ? launch_fitting<FloatAttention<4, 3>, Last>(a, launch)
                                  : launch_fitting<FloatAttention<18, 3>, Last>(a, launch);
}

}  // namespace

Status launch_attend(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const AttendArguments*>(arguments);
  switch (a.layer.type) {
    case KvType::kF16:
      return launch_mma<KvType::kF16>(a, launch);
    case KvType::kQ8_0:
      return launch_mma<KvType::kQ8_0>(a, launch);
    case KvType::kF32:
      return launch_float(a, launch);
  }
  return 1;
}

}  // namespace sterna::cuda
