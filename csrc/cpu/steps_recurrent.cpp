/// Recurrent layers: parallel over sequences, heads and channels, never over the tokens of a sequence.
#include "cpu/steps_recurrent.h"

#include <algorithm>
#include <cstring>

#include "program/op_table.h"

namespace sterna::cpu {
namespace {

/// Channels of a convolution, or heads of one element, that go together.
constexpr std::int64_t kConvChannels = 1024;
constexpr std::int64_t kScanChannels = 64;

/// Calls fn(row, state before it, where the state after it goes) for the tokens of a sequence in order; the first state
/// is null where there is none. `offset` is that of the state in a half.
template <class Fn>
void each_token(std::span<const StateSegment> segments, std::int64_t offset, Fn fn) {
  for (const StateSegment& segment : segments) {
    const float* before = segment.source == nullptr ? nullptr : segment.source + offset;
    float* const target = segment.target + offset;
    for (std::int64_t row = segment.first_row; row < segment.last_row; ++row) {
      fn(row, before, target);
      before = target;
    }
  }
}

/// Calls fn(sequence, part) for each of `parts` parts of each sequence, shared out.
template <class Fn>
void each_part(const StepContext& context, std::int64_t parts, Fn fn) {
  const std::int64_t count = context.states->num_sequences() * parts;
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) fn(item / parts, item % parts);
  });
}

}  // namespace

void run_short_conv(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const ShortConvStep*>(arguments);
  const std::int64_t offset = context.kv->state_offset(step.layer, "short_conv");
  const std::int64_t parts = (step.channels + kConvChannels - 1) / kConvChannels;
  const std::int64_t count = context.batch->num_tokens() * parts;
  // Rows do not wait for each other: the inputs of earlier ones are there.
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t row = item / parts;
      const std::int64_t channel = item % parts * kConvChannels;
      const auto segments = context.states->of_row(row);
      const std::int64_t first = segments.front().first_row;
      const float* kept = segments.front().source;
      // The input of a row of this sequence, or of a token before it.
      const auto input = [&](std::int64_t at) -> const float* {
        if (at >= first) return step.x.row(at) + channel;
        return kept == nullptr ? nullptr : kept + offset + (step.kernel - 1 + at - first) * step.channels + channel;
      };
      const float* inputs[kMaxConvTokens];
      for (int j = 0; j < step.kernel; ++j) inputs[j] = input(row - step.kernel + 1 + j);
      ConvArgs args;
      args.inputs = inputs;
      args.kernel = step.kernel;
      args.channels = std::min(kConvChannels, step.channels - channel);
      args.w = step.w.data() + channel;
      args.w_stride = step.channels;
      args.bias = step.bias == nullptr ? nullptr : step.bias + channel;
      args.y = step.y.row(row) + channel;
      context.kernels->short_conv(args);
      const auto ends = [&](const StateSegment& segment) { return segment.last_row == row + 1; };
      const auto segment = std::find_if(segments.begin(), segments.end(), ends);
      if (segment == segments.end()) continue;
      for (int j = 1; j < step.kernel; ++j) {
        float* target = segment->target + offset + (j - 1) * step.channels + channel;
        const auto bytes = static_cast<std::size_t>(args.channels) * sizeof(float);
        if (inputs[j] == nullptr) {
          std::memset(target, 0, bytes);
        } else {
          std::memcpy(target, inputs[j], bytes);
        }
      }
    }
  });
}

void run_ssm_scan(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const SsmScanStep*>(arguments);
  const std::int64_t offset = context.kv->state_offset(step.layer, "ssm_scan");
  // A part is a head, or a row of heads of one element.
  const std::int64_t heads = step.per_channel ? kScanChannels : 1;
  const std::int64_t parts = (step.heads + heads - 1) / heads;
  each_part(context, parts, [&](std::int64_t sequence, std::int64_t part) {
    const std::int64_t head = part * heads;
    const std::int64_t first = head * step.head_dim;
    SsmArgs args;
    args.rows = step.per_channel ? static_cast<int>(std::min(heads, step.heads - head)) : step.head_dim;
    args.n = step.state_dim;
    args.per_row = step.per_channel;
    args.a = step.a + (step.per_channel ? head * step.state_dim : head);
    args.d = step.d + head;
    each_token(context.states->of_sequence(sequence), offset + first * step.state_dim,
               [&](std::int64_t row, const float* before, float* target) {
                 args.state_in = before;
                 args.state_out = target;
                 args.x = step.x.row(row) + first;
                 args.dt = step.dt.row(row) + head;
                 args.y = step.y.row(row) + first;
                 const std::int64_t group = head / (step.heads / step.groups) * step.state_dim;
                 args.b = step.b.row(row) + group;
                 args.c = step.c.row(row) + group;
                 context.kernels->ssm_scan(args);
               });
  });
}

void run_delta_rule(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const DeltaRuleStep*>(arguments);
  const std::int64_t offset = context.kv->state_offset(step.layer, "delta_rule");
  each_part(context, step.value_heads, [&](std::int64_t sequence, std::int64_t head) {
    const std::int64_t key = head / (step.value_heads / step.key_heads) * step.key_dim;
    const std::int64_t value = head * step.value_dim;
    DeltaArgs args;
    args.key_dim = step.key_dim;
    args.value_dim = step.value_dim;
    each_token(context.states->of_sequence(sequence), offset + value * step.key_dim,
               [&](std::int64_t row, const float* before, float* target) {
                 args.state_in = before;
                 args.state_out = target;
                 args.q = step.q.row(row) + key;
                 args.k = step.k.row(row) + key;
                 args.v = step.v.row(row) + value;
                 args.g = step.g.row(row)[head];
                 args.beta = step.beta.row(row)[head];
                 args.y = step.y.row(row) + value;
                 context.kernels->delta_rule(args);
               });
  });
}

}  // namespace sterna::cpu
