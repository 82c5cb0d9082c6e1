/// Recurrent layers: parallel over sequences, heads and channels, never over the tokens of a sequence. A state is read
/// from the half of a page that holds it, stays in registers from token to token, and is written where segments end: in
/// decode the states' bytes bound the time, in long runs what one token waits for.
#include "cuda/kernels/device.cuh"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kNotSupported = 801;  // cudaErrorNotSupported

/// Of a sequence.
struct Segments {
  const StateSegment* first;
  const StateSegment* last;

  __device__ Segments(const DeviceBatch& batch, std::int32_t sequence)
      : first(batch.segments + batch.segment_starts[sequence]),
        last(batch.segments + batch.segment_starts[sequence + 1]) {}
};

/// A thread computes a channel of a row: the inputs of earlier rows are there. Sums begin with the bias, or zero; one
/// fma for each input, the oldest first. The last row of a segment leaves its inputs but the oldest as the state.
__global__ void short_conv(ShortConvArguments a, DeviceBatch batch, unsigned parts) {
  wait_for_previous();
  let_next_begin();
  const auto row = static_cast<std::int32_t>(blockIdx.x / parts);
  if (row >= num_tokens(batch)) return;
  const std::int64_t channel = std::int64_t{blockIdx.x % parts} * kThreads + threadIdx.x;
  const std::int32_t begin = batch.row_segments[row];
  const std::int32_t end = batch.segment_starts[batch.sequences[row] + 1];
  float* target = nullptr;
  for (std::int32_t s = begin; s < end; s += kWarp) {
    const bool ends_here = s + lane_id() < end && batch.segments[s + lane_id()].last_row == row + 1;
    const unsigned found = __ballot_sync(kAllLanes, ends_here);
    if (found != 0) target = batch.segments[s + __ffs(static_cast<int>(found)) - 1].target;
  }
  if (channel >= a.channels) return;
  const StateSegment first = batch.segments[begin];
  const auto input = [&](std::int32_t at) {
    if (at >= first.first_row) return row_of(a.x, at)[channel];
    if (first.source == nullptr) return 0.0f;
    return first.source[a.state_offset + (a.kernel - 1 + at - first.first_row) * a.channels + channel];
  };
  float sum = a.bias == nullptr ? 0.0f : a.bias[channel];
#pragma unroll 4
  for (std::int32_t j = 0; j < a.kernel; ++j) {
    sum = fmaf(input(row - a.kernel + 1 + j), a.w[j * a.channels + channel], sum);
  }
  row_of(a.y, row)[channel] = sum;
  if (target == nullptr) return;
  for (std::int32_t j = 1; j < a.kernel; ++j) {
    target[a.state_offset + (j - 1) * a.channels + channel] = input(row - a.kernel + 1 + j);
  }
}

/// Lanes that share rows of a state in a scan: lane l has columns l, l + 16, ..., and sums go by the CPU's tree.
constexpr int kScanLanes = 16;

/// What a half warp reads of a token.
template <int columns, int rows, bool per_channel>
struct ScanToken {
  float b[columns], c[columns], x[rows], dt[per_channel ? rows : 1];
};

/// A half warp keeps `rows` rows of a state, `columns` columns in each lane, and goes through the tokens: with u = dt x
/// and decay = exp(dt a), s = fma(decay, s, b u); y = fma(d, x, the sum of s c by fma). What the next token needs is
/// asked for before this one is computed.
template <int columns, int rows, bool per_channel>
__global__ void __launch_bounds__(kThreads, 3) ssm_scan(SsmScanArguments a, DeviceBatch batch, unsigned blocks) {
  using Token = ScanToken<columns, rows, per_channel>;
  wait_for_previous();
  let_next_begin();
  const auto sequence = static_cast<std::int32_t>(blockIdx.x / blocks);
  if (sequence >= num_sequences(batch)) return;
  const Segments segments(batch, sequence);
  if (segments.first == segments.last) return;
  const int lane = lane_id() % kScanLanes;
  const int n = a.state_dim;
  const int left = n - lane;  // column j * 16 + lane exists if j * 16 < left
  // A part is a head, or all heads where these are of one element.
  const int parts = per_channel ? 1 : a.heads;
  const int part_rows = per_channel ? a.heads : a.head_dim;
  const int tiles = (part_rows + rows - 1) / rows;
  const std::int64_t tile = std::int64_t{blockIdx.x % blocks} * (kThreads / kScanLanes) + threadIdx.x / kScanLanes;
  const bool exists = tile < std::int64_t{parts} * tiles;  // those beyond the end take part in shuffles
  const int part = exists ? static_cast<int>(tile / tiles) : 0;
  const int first = exists ? static_cast<int>(tile % tiles) * rows : 0;
  const int count = !exists ? 0 : (part_rows - first < rows ? part_rows - first : rows);
  const std::int64_t channel = std::int64_t{part} * part_rows + first;
  const std::int64_t group = per_channel ? 0 : std::int64_t{part / (a.heads / a.groups)} * n;
  const std::int64_t state_at = a.state_offset + channel * n;

  const auto load_token = [&](Token& token, std::int32_t row) {
    const float* const b = row_of(a.b, row) + group + lane;
    const float* const c = row_of(a.c, row) + group + lane;
    const float* const x = row_of(a.x, row) + channel;
    const float* const dt = row_of(a.dt, row) + (per_channel ? channel : part);
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      token.b[j] = j * kScanLanes < left ? b[j * kScanLanes] : 0.0f;
      token.c[j] = j * kScanLanes < left ? c[j * kScanLanes] : 0.0f;
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      token.x[r] = r < count ? x[r] : 0.0f;
      if (per_channel) token.dt[r] = r < count ? dt[r] : 0.0f;
    }
    if (!per_channel) token.dt[0] = dt[0];
  };

  float state[rows][columns], rates[per_channel ? rows : 1][per_channel ? columns : 1], d[per_channel ? rows : 1];
  const bool is_kept = segments.first->source != nullptr;
  const float* source = is_kept ? segments.first->source + state_at + lane : nullptr;
  const float* rate = per_channel ? a.a + channel * n + lane : nullptr;
#pragma unroll
  for (int r = 0; r < rows; ++r) {
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      const bool has = r < count && j * kScanLanes < left;
      state[r][j] = has && is_kept ? source[j * kScanLanes] : 0.0f;
      if (per_channel) rates[r][j] = has ? rate[j * kScanLanes] : 0.0f;
    }
    if (is_kept) source += n;
    if (per_channel) rate += n;
    if (per_channel) d[r] = r < count ? a.d[channel + r] : 0.0f;
  }
  if (!per_channel) {
    rates[0][0] = a.a[part];
    d[0] = a.d[part];
  }

  Token next;
  load_token(next, segments.first->first_row);
  const std::int32_t end = segments.last[-1].last_row;
  for (const StateSegment* segment = segments.first; segment != segments.last; ++segment) {
    const std::int32_t last_row = segment->last_row;
    for (std::int32_t row = segment->first_row; row < last_row; ++row) {
      const Token token = next;
      if (row + 1 < end) load_token(next, row + 1);
      const float shared_decay = per_channel ? 0.0f : exponential(token.dt[0] * rates[0][0]);
      float sums[rows];
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const float dt = token.dt[per_channel ? r : 0];
        const float u = dt * token.x[r];
        sums[r] = 0.0f;
#pragma unroll
        for (int j = 0; j < columns; ++j) {
          const float decay = per_channel ? exponential(dt * rates[r][j]) : shared_decay;
          state[r][j] = fmaf(decay, state[r][j], token.b[j] * u);
          sums[r] = fmaf(state[r][j], token.c[j], sums[r]);
        }
      }
#pragma unroll
      for (int distance = kScanLanes / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int r = 0; r < rows; ++r) sums[r] = sums[r] + __shfl_xor_sync(kAllLanes, sums[r], distance);
      }
      float* const y = row_of(a.y, row) + channel;
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        if (lane == r && r < count) y[r] = fmaf(d[per_channel ? r : 0], token.x[r], sums[r]);
      }
    }
    float* target = segment->target + state_at + lane;
#pragma unroll
    for (int r = 0; r < rows; ++r) {
#pragma unroll
      for (int j = 0; j < columns; ++j) {
        if (r < count && j * kScanLanes < left) target[j * kScanLanes] = state[r][j];
      }
      target += n;
    }
  }
}

/// How a warp shares columns of a head's state: each column has `parts` lanes, which have four rows, then the four that
/// are 4 * parts further, and so on.
template <int parts>
struct DeltaLanes {
  static constexpr int kColumns = kWarp / parts;
  static constexpr int kBlockColumns = kThreads / parts;
  static constexpr int kStep = 4 * parts;  // rows until a lane has the next four

  /// Over the lanes of a column: four sums of each, then those of lanes next to each other in it, and so on.
  static __device__ float sum(const float (&sums)[4]) {
    float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
#pragma unroll
    for (int distance = kColumns; distance < kWarp; distance *= 2) {
      sum = sum + __shfl_xor_sync(kAllLanes, sum, distance);
    }
    return sum;
  }
};

/// For each token: memory = the sum of s k over the rows; delta = (v - decay memory) beta; s = fma(k, delta, decay s);
/// y = the sum of s q. k and q of a token are in shared memory while those of the next are on their way. A lane has
/// 4 * `steps` rows of its column.
template <int parts, int steps>
__global__ void __launch_bounds__(kThreads, 3) delta_rule(DeltaRuleArguments a, DeviceBatch batch, unsigned blocks) {
  using Lanes = DeltaLanes<parts>;
  constexpr int kRows = Lanes::kStep * steps;
  constexpr int kStaged = (2 * kRows + kThreads - 1) / kThreads;  // numbers of k and q for each thread
  __shared__ float4 staged[2][2 * kRows / 4];                     // k, then q, beyond their ends zero
  wait_for_previous();
  let_next_begin();
  const auto sequence = static_cast<std::int32_t>(blockIdx.x / blocks);
  if (sequence >= num_sequences(batch)) return;
  const Segments segments(batch, sequence);
  if (segments.first == segments.last) return;
  const int column_blocks = (a.value_dim + Lanes::kBlockColumns - 1) / Lanes::kBlockColumns;
  const int head = static_cast<int>(blockIdx.x % blocks) / column_blocks;
  const int part = lane_id() / Lanes::kColumns;
  const int column = static_cast<int>(blockIdx.x % blocks) % column_blocks * Lanes::kBlockColumns +
                     warp_id() * Lanes::kColumns + lane_id() % Lanes::kColumns;
  const bool exists = column < a.value_dim;  // those beyond the end take part in shuffles and barriers
  const std::int64_t key = std::int64_t{head / (a.value_heads / a.key_heads)} * a.key_dim;
  const std::int64_t value = std::int64_t{head} * a.value_dim + column;
  const std::int64_t stride = a.value_dim;
  const std::int64_t state_at = a.state_offset + (std::int64_t{head} * a.key_dim + part * 4) * stride + column;

  float on_their_way[kStaged], next_v = 0.0f, next_g = 0.0f, next_beta = 0.0f;
  const auto load_token = [&](std::int32_t row) {
#pragma unroll
    for (int j = 0; j < kStaged; ++j) {
      const int i = j * kThreads + static_cast<int>(threadIdx.x);
      const float* const from = row_of(i < kRows ? a.k : a.q, row) + key;
      on_their_way[j] = i < 2 * kRows && i % kRows < a.key_dim ? from[i % kRows] : 0.0f;
    }
    next_v = exists ? row_of(a.v, row)[value] : 0.0f;
    next_g = row_of(a.g, row)[head];
    next_beta = row_of(a.beta, row)[head];
  };
  const auto stage_token = [&](int buffer) {
#pragma unroll
    for (int j = 0; j < kStaged; ++j) {
      const int i = j * kThreads + static_cast<int>(threadIdx.x);
      if (i < 2 * kRows) reinterpret_cast<float*>(staged[buffer])[i] = on_their_way[j];
    }
  };
  // Row step * kStep + e of those from part * 4 on exists if that is below `left`.
  const int left = exists ? a.key_dim - part * 4 : 0;
  float state[4 * steps];
  const bool is_kept = segments.first->source != nullptr;
  const float* source = is_kept ? segments.first->source + state_at : nullptr;
#pragma unroll
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const bool has = is_kept && step * Lanes::kStep + e < left;
      state[4 * step + e] = has ? source[e * stride] : 0.0f;
    }
    if (is_kept) source += Lanes::kStep * stride;
  }
  load_token(segments.first->first_row);
  stage_token(0);
  __syncthreads();
  const std::int32_t end = segments.last[-1].last_row;
  int buffer = 0;
  for (const StateSegment* segment = segments.first; segment != segments.last; ++segment) {
    const std::int32_t last_row = segment->last_row;
    for (std::int32_t row = segment->first_row; row < last_row; ++row) {
      const float v = next_v, beta = next_beta, decay = exponential(next_g);
      if (row + 1 < end) load_token(row + 1);
      const float4* const k = staged[buffer] + part;
      const float4* const q = k + kRows / 4;
      float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const float4 keys = k[step * parts];
        sums[0] = fmaf(state[4 * step], keys.x, sums[0]);
        sums[1] = fmaf(state[4 * step + 1], keys.y, sums[1]);
        sums[2] = fmaf(state[4 * step + 2], keys.z, sums[2]);
        sums[3] = fmaf(state[4 * step + 3], keys.w, sums[3]);
      }
      const float delta = (v - decay * Lanes::sum(sums)) * beta;
      const auto update = [&](int j, float key_number, float query_number) {
        state[j] = fmaf(key_number, delta, decay * state[j]);
        sums[j % 4] = fmaf(state[j], query_number, sums[j % 4]);
      };
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = 0.0f;
#pragma unroll
      for (int step = 0; step < steps; ++step) {
        const float4 keys = k[step * parts];
        const float4 queries = q[step * parts];
        update(4 * step, keys.x, queries.x);
        update(4 * step + 1, keys.y, queries.y);
        update(4 * step + 2, keys.z, queries.z);
        update(4 * step + 3, keys.w, queries.w);
      }
      const float y = Lanes::sum(sums);
      if (exists && part == 0) row_of(a.y, row)[value] = y;
      // Nobody reads the other buffer since the barrier before this token.
      buffer = 1 - buffer;
      if (row + 1 < end) stage_token(buffer);
      __syncthreads();
    }
    float* target = segment->target + state_at;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (step * Lanes::kStep + e < left) target[e * stride] = state[4 * step + e];
      }
      target += Lanes::kStep * stride;
    }
  }
}

template <int columns, bool per_channel>
Status launch_scan(const SsmScanArguments& a, const Launch& launch) {
  constexpr int kNumbers = columns * (per_channel ? 2 : 1);  // of a row that a lane keeps in registers
  constexpr int kRows = kNumbers <= 8 ? 4 : 32 / kNumbers;
  const std::int64_t parts = per_channel ? 1 : a.heads;
  const std::int64_t part_rows = per_channel ? a.heads : a.head_dim;
  const std::int64_t tiles = parts * ((part_rows + kRows - 1) / kRows);
  constexpr int kTiles = kThreads / kScanLanes;
  const auto blocks = static_cast<unsigned>((tiles + kTiles - 1) / kTiles);
  return cuda::launch(ssm_scan<columns, kRows, per_channel>, static_cast<unsigned>(launch.num_sequences) * blocks,
                      kThreads, 0, launch.stream, a, *launch.batch, blocks);
}

template <bool per_channel>
Status launch_scan(const SsmScanArguments& a, const Launch& launch) {
  if (a.state_dim <= kScanLanes) return launch_scan<1, per_channel>(a, launch);
  if (a.state_dim <= 2 * kScanLanes) return launch_scan<2, per_channel>(a, launch);
  if (a.state_dim <= 4 * kScanLanes) return launch_scan<4, per_channel>(a, launch);
  if (a.state_dim <= 8 * kScanLanes) return launch_scan<8, per_channel>(a, launch);
  static_assert(kMaxScanStateDim == 16 * kScanLanes);
  return launch_scan<16, per_channel>(a, launch);
}

template <int parts, int steps>
Status launch_delta(const DeltaRuleArguments& a, const Launch& launch) {
  constexpr int kColumns = DeltaLanes<parts>::kBlockColumns;
  const auto blocks = static_cast<unsigned>(a.value_heads * ((a.value_dim + kColumns - 1) / kColumns));
  return cuda::launch(delta_rule<parts, steps>, static_cast<unsigned>(launch.num_sequences) * blocks, kThreads, 0,
                      launch.stream, a, *launch.batch, blocks);
}

}  // namespace

Status launch_short_conv(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const ShortConvArguments*>(arguments);
  const auto parts = static_cast<unsigned>((a.channels + kThreads - 1) / kThreads);
  return cuda::launch(short_conv, static_cast<unsigned>(launch.num_tokens) * parts, kThreads, 0, launch.stream, a,
                      *launch.batch, parts);
}

Status launch_ssm_scan(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const SsmScanArguments*>(arguments);
  if (a.state_dim > kMaxScanStateDim) return kNotSupported;
  return a.per_channel ? launch_scan<true>(a, launch) : launch_scan<false>(a, launch);
}

Status launch_delta_rule(const void* arguments, const Launch& launch) {
  const auto& a = *static_cast<const DeltaRuleArguments*>(arguments);
  if (a.key_dim > kMaxDeltaKeyDim) return kNotSupported;
  if (a.key_dim <= 32) return launch_delta<4, 2>(a, launch);
  if (a.key_dim <= 64) return launch_delta<4, 4>(a, launch);
  if (a.key_dim <= 128) return launch_delta<4, 8>(a, launch);
  static_assert(kMaxDeltaKeyDim == 256);
  return launch_delta<8, 8>(a, launch);
}

}  // namespace sterna::cuda
