/// What the operands and attributes of an attention node say, for the lowerings of all backends.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "program/attention_options.h"
#include "program/program.h"

namespace sterna {

struct AttentionNode {
  /// A bias of each head by distance, the same for all nodes of equal names: they can share one table.
  struct RelativeBias {
    ValueId w = kNoValue;  // [buckets, heads]; kNoValue: none
    std::int64_t farthest = 0;
    std::string name;
  };

  std::int64_t layer;
  std::int64_t query_heads, head_dim;
  bool stores;         // writes K and V; otherwise reads those of another node or of the encoder
  bool normed, roped;  // its queries and keys, before they are stored and met
  float norm_eps;
  float scale, softcap;
  std::int64_t window;        // keys seen, the own one included; 0: all
  std::int64_t chunk;         // keys are seen from the last multiple of it on; 0: all
  bool causal;                // otherwise keys at most window / 2 positions away, before and after
  bool cross;                 // all keys of the sequence that was encoded for this one
  std::vector<float> slopes;  // [query head], of ALiBi; empty: none
  AttentionTemperature temperature;
  RelativeBias relative_bias;
};

/// Throws UnsupportedModelError where keys and values are shared by a node that sees later ones.
AttentionNode read_attention(const Program& program, const Node& node);

}  // namespace sterna
