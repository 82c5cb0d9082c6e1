/// What options of an attention node mean in numbers: slopes of ALiBi, and a temperature that grows with the position.
#pragma once

#include <cstdint>
#include <vector>

#include "program/program.h"

namespace sterna {

/// Slopes of ALiBi (arXiv:2108.12409) by query head: a geometric sequence down to 2^-max_bias for the largest power of
/// two of heads; further heads lie between, as in transformers' build_alibi_tensor.
std::vector<float> alibi_slopes(std::int64_t num_heads, double max_bias);

/// Scores of a row are multiplied by 1 + scale * ln(1 + floor((position + offset) / length)), rounded to float
/// (transformers, models/llama4/modeling_llama4.py and models/ministral3). Scale 0: by 1.
struct AttentionTemperature {
  double scale = 0.0;
  std::int64_t length = 1;
  std::int64_t offset = 0;

  float at(std::int64_t position) const;
};

AttentionTemperature attention_temperature(const Node& node);

/// The bucket of a key that lies `offset` positions behind a row (negative: before it): half of a side's buckets are
/// for single distances, the others grow up to max_distance (arXiv:1910.10683; transformers, models/t5). Without
/// `causal`, later keys have the second half of the buckets.
std::int64_t relative_bucket(std::int64_t offset, bool causal, std::int64_t num_buckets, std::int64_t max_distance);

}  // namespace sterna
