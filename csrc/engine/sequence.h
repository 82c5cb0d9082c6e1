/// One sequence: its tokens, and the pages with the K and V of those computed so far.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"
#include "engine/pages.h"

namespace sterna {

/// Invariant: a page with positions from num_computed on (one that will be written) has one reference; full pages may
/// be shared.
struct Sequence {
  enum class State { kIdle, kWaiting, kRunning };

  std::vector<std::int32_t> tokens;  // the prompt and what was chosen since
  std::int32_t num_computed = 0;     // how many of them, from the first on, are in the cache
  std::int32_t output_from = 0;      // rows from this position on want logits
  std::vector<std::int32_t> pages;   // page table

  // The scheduler's.
  State state = State::kIdle;
  std::uint64_t order = 0;  // of arrival; of the last use while idle

  std::int32_t num_tokens() const { return static_cast<std::int32_t>(tokens.size()); }
  std::int32_t num_pending() const { return num_tokens() - num_computed; }
};

constexpr std::int32_t pages_for(std::int64_t positions) {
  return static_cast<std::int32_t>((positions + kPageSlots - 1) / kPageSlots);
}

/// Forgets what is in the cache from position `length` on. Inside a page that others share it goes back to the page's
/// begin: the page itself must not be written.
void truncate_cache(Sequence& sequence, std::int32_t length, KvPages& pages);

/// Releases pages beyond those of the computed positions.
void release_unused_pages(Sequence& sequence, KvPages& pages);

/// A copy: full pages are shared, the tokens of the last, partial page will be computed again.
Sequence fork_sequence(const Sequence& source, KvPages& pages);

/// How many leading tokens are equal.
std::int32_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b);

}  // namespace sterna
