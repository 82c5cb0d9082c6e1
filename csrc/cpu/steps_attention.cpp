/// Rotary positions, the KV cache, and attention.
#include <algorithm>
#include <cstring>
#include <limits>

#include "cpu/steps.h"
#include "program/attention_options.h"

namespace sterna::cpu {
namespace {

/// y = transform(x) for one row of heads; x and y may be the same.
void transform_heads(const HeadTransform& transform, const KernelTable& kernels, std::int64_t row, int heads,
                     int head_dim, const float* x, float* y) {
  if (transform.norm != nullptr) {
    for (int h = 0; h < heads; ++h) {
      kernels.rms_norm(x + h * head_dim, transform.norm, y + h * head_dim, head_dim, transform.eps);
    }
  } else if (x != y) {
    std::memcpy(y, x, sizeof(float) * static_cast<std::size_t>(heads * head_dim));
  }
  if (transform.cosines.data != nullptr) {
    kernels.rope(y, heads, head_dim, transform.rotary_dim, transform.interleaved, transform.cosines.row(row),
                 transform.sines.row(row));
  }
}

/// One head's key into its column of the tile, its value (null: none is stored) into its row.
void store_slot(const StepContext& context, const KvStorage::Layer& layer, std::int32_t page, int head, int slot,
                const float* key, const float* value, float* scratch) {
  std::uint8_t* keys = context.kv->keys(page, layer, head);
  std::uint8_t* values = context.kv->values(page, layer, head);
  switch (context.kv->type()) {
    case KvType::kF32: {
      float* column = reinterpret_cast<float*>(keys) + slot;
      for (int d = 0; d < layer.head_dim; ++d) column[d * kPageSlots] = key[d];
      if (value == nullptr) break;
      std::memcpy(values + 4 * std::int64_t{slot} * layer.value_stride, value,
                  sizeof(float) * static_cast<std::size_t>(layer.value_dim));
      break;
    }
    case KvType::kF16: {
      auto* halves = reinterpret_cast<std::uint16_t*>(scratch);
      context.kernels->to_half(key, halves, layer.head_dim);
      std::uint16_t* column = reinterpret_cast<std::uint16_t*>(keys) + slot;
      for (int d = 0; d < layer.head_dim; ++d) column[d * kPageSlots] = halves[d];
      if (value == nullptr) break;
      context.kernels->to_half(
          value, reinterpret_cast<std::uint16_t*>(values) + std::int64_t{slot} * layer.value_stride, layer.value_dim);
      break;
    }
    case KvType::kQ8_0: {
      auto* scales = reinterpret_cast<std::uint16_t*>(scratch);
      const auto scatter_scales = [&](std::uint16_t* first, int dim) {
        for (int group = 0; group * kKvGroup < dim; ++group) first[group * kPageSlots + slot] = scales[group];
      };
      auto* codes = reinterpret_cast<std::int8_t*>(scales + (layer.head_dim + kKvGroup - 1) / kKvGroup);
      context.kernels->to_q8_0(key, codes, scales, layer.head_dim);
      auto* column = reinterpret_cast<std::int8_t*>(keys) + slot;
      for (int d = 0; d < layer.head_dim; ++d) column[d * kPageSlots] = codes[d];
      scatter_scales(KvStorage::key_scales(keys, layer), layer.head_dim);
      if (value == nullptr) break;
      codes = reinterpret_cast<std::int8_t*>(values) + std::int64_t{slot} * layer.value_stride;
      context.kernels->to_q8_0(value, codes, scales, layer.value_dim);
      scatter_scales(KvStorage::value_scales(values, layer), layer.value_dim);
      break;
    }
  }
}

void call_attend(const KernelTable& kernels, KvType type, const AttendArgs& args) {
  switch (type) {
    case KvType::kF16:
      return kernels.attend_f16(args);
    case KvType::kF32:
      return kernels.attend_f32(args);
    case KvType::kQ8_0:
      return kernels.attend_q8_0(args);
  }
}

/// Positions of the keys that a row sees, both included.
struct KeyRange {
  std::int64_t first;
  std::int64_t last;
};

/// Those on both sides; the sequence ends at position `end`.
KeyRange surrounding_keys(std::int64_t position, std::int64_t window, std::int64_t end) {
  if (window == 0) return {0, end};
  return {std::max<std::int64_t>(0, position - window / 2), std::min(end, position + window / 2)};
}

/// Of the sequence of that row.
std::int64_t last_position(const Batch& batch, std::int64_t row) {
  auto r = static_cast<std::size_t>(row);
  while (r + 1 < batch.sequences.size() && batch.sequences[r + 1] == batch.sequences[r]) ++r;
  return batch.positions[r];
}

/// Of the text that was encoded for a sequence.
std::int64_t encoded_positions(const Batch& batch, std::int32_t sequence) {
  return static_cast<std::int64_t>(batch.context(sequence)->encoder_tokens.size());
}

/// Queries that go together: two full sets of registers, so that a tile is read from memory once for all of them.
constexpr int kQueriesTogether = 24;

/// The first key that a row sees.
std::int64_t first_key_of(const AttendStep& step, std::int64_t position) {
  if (step.chunk != 0) return position / step.chunk * step.chunk;
  return step.window == 0 ? 0 : std::max<std::int64_t>(0, position - step.window + 1);
}

/// Biases of all keys in the pages of first_key .. last_key, for rows at positions first .. last.
class KeyBiases {
 public:
  KeyBiases(const AttendStep& step, int first_query, int heads, std::int64_t first_position, std::int64_t last_position,
            std::int64_t first_key, std::int64_t last_key, float* space)
      : space_(space),
        from_(first_key / kPageSlots * kPageSlots),
        nearest_(from_ - last_position),
        row_((last_key / kPageSlots + 1) * kPageSlots - first_position - nearest_) {
    for (int h = 0; h < heads; ++h) {
      const float* by_distance = step.relative_bias + (first_query + h) * (2 * step.farthest + 1) + step.farthest;
      for (std::int64_t i = 0; i < row_; ++i) {
        space_[h * row_ + i] = by_distance[std::clamp(nearest_ + i, -step.farthest, step.farthest)];
      }
    }
  }

  /// The first key.
  std::int64_t from() const { return from_; }
  /// From that key on.
  const float* of(int head, std::int64_t position) const { return space_ + head * row_ + from_ - position - nearest_; }

 private:
  float* space_;
  std::int64_t from_;
  std::int64_t nearest_;  // the first of all offsets of keys from rows
  std::int64_t row_;      // offsets, for each head
};

/// Query heads first_query .. first_query + heads - 1 of rows first_row .. last_row - 1, all of one sequence.
void attend_rows(const AttendStep& step, const StepContext& context, int head, int first_query, int heads,
                 std::int64_t first_row, std::int64_t last_row) {
  const Batch& batch = *context.batch;
  const KvStorage::Layer& layer = context.kv->layer(step.layer);
  const float* queries[kMaxAttentionQueries];
  float* outputs[kMaxAttentionQueries];
  std::int64_t first_keys[kMaxAttentionQueries];
  std::int64_t last_keys[kMaxAttentionQueries];
  std::int64_t positions[kMaxAttentionQueries];
  float scales[kMaxAttentionQueries];
  const float* biases[kMaxAttentionQueries];
  AttendArgs args;
  args.queries = queries;
  args.outputs = outputs;
  args.rows = static_cast<int>(last_row - first_row);
  args.heads = heads;
  args.head_dim = layer.head_dim;
  args.value_dim = layer.value_dim;
  args.value_stride = layer.value_stride;
  args.scales = scales;
  args.softcap = step.softcap;
  args.sinks = step.sinks == nullptr ? nullptr : step.sinks + first_query;
  args.slopes = step.slopes.empty() ? nullptr : step.slopes.data() + first_query;
  args.positions = positions;
  args.first_keys = first_keys;
  args.last_keys = last_keys;
  args.scratch = context.scratch->floats.as<float>();
  const std::int32_t sequence = batch.sequences[static_cast<std::size_t>(first_row)];
  std::int64_t first_key = std::numeric_limits<std::int64_t>::max();
  std::int64_t last_key = 0;
  const std::int64_t sequence_end = step.cross    ? encoded_positions(batch, sequence) - 1
                                    : step.causal ? 0
                                                  : last_position(batch, last_row - 1);
  for (int i = 0; i < args.rows; ++i) {
    const std::int64_t position = batch.positions[static_cast<std::size_t>(first_row + i)];
    const KeyRange keys = step.cross    ? KeyRange{0, sequence_end}
                          : step.causal ? KeyRange{first_key_of(step, position), position}
                                        : surrounding_keys(position, step.window, sequence_end);
    positions[i] = position;
    first_keys[i] = keys.first;
    last_keys[i] = keys.last;
    scales[i] = step.scale * step.temperature.at(position);
    first_key = std::min(first_key, first_keys[i]);
    last_key = std::max(last_key, last_keys[i]);
    for (int h = 0; h < heads; ++h) {
      queries[i * heads + h] = step.q.row(first_row + i) + (first_query + h) * layer.head_dim;
      outputs[i * heads + h] = step.y.row(first_row + i) + (first_query + h) * layer.value_dim;
    }
  }
  if (step.relative_bias != nullptr) {
    const KeyBiases all(step, first_query, heads, positions[0], positions[args.rows - 1], first_key, last_key,
                        context.scratch->key_biases.data());
    for (int q = 0; q < args.rows * heads; ++q) biases[q] = all.of(q % heads, positions[q / heads]);
    args.biases = biases;
    args.biases_from = all.from();
  }
  const auto table = batch.table(sequence, layer.pool);
  for (std::int64_t page = first_key / kPageSlots; page <= last_key / kPageSlots; ++page) {
    const auto p = static_cast<std::size_t>(page);
    context.scratch->key_tiles[p] = context.kv->keys(table[p], layer, head);
    if (!layer.latent) context.scratch->value_tiles[p] = context.kv->values(table[p], layer, head);
  }
  args.key_tiles = context.scratch->key_tiles.data();
  args.value_tiles = layer.latent ? nullptr : context.scratch->value_tiles.data();
  call_attend(*context.kernels, context.kv->type(), args);
}

}  // namespace

void run_relative_bias(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const RelativeBiasStep*>(arguments);
  const std::int64_t heads = step.w->k;
  const std::int64_t row = 2 * step.farthest + 1;
  float* bucket = context.scratch->floats.as<float>();
  context.share(row, context.row_piece(row), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      dequantize_row(*step.w, relative_bucket(i - step.farthest, step.causal, step.w->n, step.farthest), bucket);
      for (std::int64_t h = 0; h < heads; ++h) step.y[h * row + i] = bucket[h];
    }
  });
}

void run_rope(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const RopeStep*>(arguments);
  const std::int64_t count = context.batch->num_tokens();
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      transform_heads(step.transform, *context.kernels, row, step.heads, step.head_dim, step.x.row(row),
                      step.y.row(row));
    }
  });
}

void run_store_kv(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const StoreKvStep*>(arguments);
  const Batch& batch = *context.batch;
  const KvStorage::Layer& layer = context.kv->layer(step.layer);
  float* transformed = context.scratch->floats.as<float>();
  float* halves = transformed + layer.num_heads * layer.head_dim;
  const std::int64_t count = batch.num_tokens();
  context.share(count, context.row_piece(count), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
      const auto t = static_cast<std::size_t>(row);
      if (step.q_out.data != nullptr) {
        transform_heads(step.query_transform, *context.kernels, row, step.query_heads, layer.head_dim, step.q.row(row),
                        step.q_out.row(row));
      }
      const float* keys = step.k.row(row);
      if (!step.key_transform.is_identity()) {
        transform_heads(step.key_transform, *context.kernels, row, layer.num_heads, layer.head_dim, keys, transformed);
        keys = transformed;
      }
      const std::int32_t position = batch.positions[t];
      const auto table = batch.table(batch.sequences[t], layer.pool);
      const std::int32_t page = table[static_cast<std::size_t>(position / kPageSlots)];
      for (int h = 0; h < layer.num_heads; ++h) {
        store_slot(context, layer, page, h, position % kPageSlots, keys + h * layer.head_dim,
                   layer.latent ? nullptr : step.v.row(row) + h * layer.value_dim, halves);
      }
    }
  });
}

void run_attend(const void* arguments, const StepContext& context) {
  const auto& step = *static_cast<const AttendStep*>(arguments);
  const Batch& batch = *context.batch;
  const KvStorage::Layer& layer = context.kv->layer(step.layer);
  const int group = step.query_heads / layer.num_heads;
  const std::int64_t num_rows = batch.num_tokens();

  // Neighbouring rows and the heads that share keys go together; with too little work for all workers, fewer of them.
  int heads = std::min(group, kMaxAttentionQueries);
  int rows = std::max(1, kQueriesTogether / heads);
  const auto items = [&] { return (num_rows + rows - 1) / rows * layer.num_heads * ((group + heads - 1) / heads); };
  while (rows > 1 && items() < 4 * context.num_workers) rows = (rows + 1) / 2;
  while (heads > 1 && items() < context.num_workers) heads = (heads + 1) / 2;
  const int parts = (group + heads - 1) / heads;

  context.share(items(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t item = begin; item < end; ++item) {
      const std::int64_t first_row = item / (layer.num_heads * parts) * rows;
      const int head = static_cast<int>(item / parts % layer.num_heads);
      const int first_head = static_cast<int>(item % parts) * heads;
      const std::int64_t last_row = std::min<std::int64_t>(first_row + rows, num_rows);
      // Rows of one sequence share its keys.
      for (std::int64_t row = first_row; row < last_row;) {
        std::int64_t next = row + 1;
        const auto sequence = [&](std::int64_t r) { return batch.sequences[static_cast<std::size_t>(r)]; };
        while (next < last_row && sequence(next) == sequence(row)) ++next;
        attend_rows(step, context, head, head * group + first_head, std::min(heads, group - first_head), row, next);
        row = next;
      }
    }
  });
}

}  // namespace sterna::cpu
