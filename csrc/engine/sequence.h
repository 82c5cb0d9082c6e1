/// One sequence: its tokens, and the pages with the K and V of those computed so far.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"
#include "engine/prefix_index.h"

namespace sterna {

/// Who goes first where not all can.
enum class Priority { kInteractive, kBackground };

/// Invariant: a page with positions from num_computed on (one that will be written) is this sequence's alone; full
/// pages may be shared.
struct Sequence {
  enum class State { kIdle, kWaiting, kRunning };

  std::vector<std::int32_t> tokens;  // the prompt and what was chosen since
  std::vector<std::int32_t> draft;   // a guess of what will follow, to be computed along with the last token
  std::int32_t num_computed = 0;     // how many tokens, from the first on, are in the cache
  std::int32_t output_from = 0;      // rows from this position on want logits
  std::string context_key;           // what else its K and V depend on; see PrefixIndex
  bool is_long = false;              // see Batch::long_sequences
  Priority priority = Priority::kInteractive;

  // KvCache's.
  std::vector<std::vector<std::int32_t>> pages;  // page tables, by pool
  PrefixIndex::Node* node = nullptr;             // its last page in the index
  std::int32_t num_indexed = 0;                  // pages of it that are in the index
  std::int32_t kept_state_page = kNoPage;        // others will go on from the state at its end
  std::int32_t num_reused = 0;                   // tokens that were found in the cache and never computed
  std::int32_t num_seen = 0;                     // tokens computed or reused so far, whatever was lost since

  // The scheduler's.
  State state = State::kIdle;
  std::uint64_t order = 0;  // of arrival

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_pending() const { return num_tokens() - num_computed; }
};

constexpr std::int32_t pages_for(std::int64_t positions) {
  return static_cast<std::int32_t>((positions + kPageSlots - 1) / kPageSlots);
}

/// How many leading tokens are equal.
std::int32_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b);

}  // namespace sterna
