/// What one run of a Plan computes: rows of tokens from one or more sequences, side by side.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace sterna {

/// Slots of the KV cache per page; also the key tile of attention. Fixed: results depend on it.
constexpr std::int32_t kPageSlots = 64;

/// Stands in a page table where a page is out of the window and was let go.
constexpr std::int32_t kNoPage = -1;

/// What beside its tokens a sequence's rows are computed from. Sequences that differ in it share no K and V, and have
/// different context keys (see PrefixIndex).
struct SequenceContext {
  std::int32_t adapter = -1;  // of those that the plan was loaded with; -1: none
  float adapter_scale = 1.0f;
  std::vector<float> embeddings;             // [n, hidden_size]: what the token ids -1, -2, ... -n stand for
  std::vector<std::int32_t> encoder_tokens;  // the text that is encoded for it, for models that need one
};

/// What a row sees of a pool, in place of a window: no keys, but the state of recurrent layers after the token before
/// it. Such a page holds the state after the last token computed in it; full, it is the one at its end, and for good.
constexpr std::int32_t kStateWindow = -1;

/// Row t is token tokens[t] of sequence sequences[t] at positions[t]; in each pool of pages its K and V go to slot
/// positions[t] % 64 of page table(sequences[t], pool)[positions[t] / 64]. Rows of one sequence are contiguous and
/// ascending in position; a row sees the keys 0..positions[t] of its own sequence, those written by earlier rows of
/// this same batch included, as far as the pool's window goes: pages out of it may be missing (kNoPage). Of a pool of
/// states a sequence needs the page of the token before its first row, and that of its last row; the end of each page
/// in between is kept where there is a page for it.
struct Batch {
  std::span<const std::int32_t> tokens;                        // [T]
  std::span<const std::int32_t> positions;                     // [T]
  std::span<const std::int32_t> sequences;                     // [T], sequences of the batch
  std::span<const std::span<const std::int32_t>> page_tables;  // [sequence][pool]
  std::span<const std::int32_t> output_rows;                   // [L], ascending: the rows whose logits are wanted

  std::span<const SequenceContext* const> contexts = {};  // [sequence], null for plain ones; or empty: all are
  /// [sequence]: whether its positions turn with the long factors of longrope, which is so for all its life; empty:
  /// no sequence's do.
  std::span<const std::uint8_t> long_sequences = {};

  /// [L]: how many of a row's largest logits are enough, at most Plan::most_largest(); 0: the whole row is wanted. Or
  /// empty: so are all rows.
  std::span<const std::int32_t> largest = {};
  /// [T, n]: what the plan before this one in a chain computed of each row; empty for a plan that stands alone.
  std::span<const float> received = {};

  std::span<const std::string> kept = {};  // values that can be looked at after the run: see Plan::kept_row

  std::size_t num_pools = 1;
  /// Runs the function "encode" instead of "logits": an output row then stands for its sequence, of which it is the
  /// last row. Where that function needs whole sequences (Plan::encoding), they begin at position 0.
  bool encode = false;

  bool is_long(std::int32_t sequence) const {
    return !long_sequences.empty() && long_sequences[static_cast<std::size_t>(sequence)] != 0;
  }

  std::span<const std::int32_t> table(std::int32_t sequence, std::size_t pool) const {
    return page_tables[static_cast<std::size_t>(sequence) * num_pools + pool];
  }
  /// Null for a sequence that has none.
  const SequenceContext* context(std::int32_t sequence) const {
    return contexts.empty() ? nullptr : contexts[static_cast<std::size_t>(sequence)];
  }
  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_outputs() const { return static_cast<std::int32_t>(output_rows.size()); }
};

}  // namespace sterna
