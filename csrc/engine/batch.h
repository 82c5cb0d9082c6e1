/// What one run of a Plan computes: rows of tokens from one or more sequences, side by side.
#pragma once

#include <cstdint>
#include <span>

namespace sterna {

/// Slots of the KV cache per page; also the key tile of attention. Fixed: results depend on it.
constexpr std::int32_t kPageSlots = 64;

/// Row t is token tokens[t] of sequence sequences[t] at positions[t]; its K and V go to slot positions[t] % 64 of page
/// page_tables[sequences[t]][positions[t] / 64]. Rows of one sequence are contiguous and ascending in position; a row
/// sees the keys 0..positions[t] of its own sequence, those written by earlier rows of this same batch included.
struct Batch {
  std::span<const std::int32_t> tokens;     // [T]
  std::span<const std::int32_t> positions;  // [T]
  std::span<const std::int32_t> sequences;  // [T], indices into page_tables
  std::span<const std::span<const std::int32_t>> page_tables;
  std::span<const std::int32_t> output_rows;  // [L], ascending: the rows whose logits are wanted

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_outputs() const { return static_cast<std::int32_t>(output_rows.size()); }
};

}  // namespace sterna
