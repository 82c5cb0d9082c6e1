/// The paged KV cache as bookkeeping: which pages a sequence holds, which it finds, shares, copies and lets go. The
/// bytes are the Plan's.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/pages.h"
#include "engine/prefix_index.h"
#include "engine/sequence.h"
#include "plan/plan.h"

namespace sterna {

/// Pages that a pool may have where sequences hold `kv_tokens` positions together: of a window only what
/// `max_sequences` see at once, and what a run of `max_tokens` rows adds; of states two for each sequence (the one that
/// it goes on from, and the next), and as many for later sequences as a budget of bytes allows.
std::int32_t pool_page_limit(std::int32_t window, std::int64_t kv_tokens, std::int32_t max_sequences,
                             std::int32_t max_tokens, std::uint64_t page_bytes);

/// The same for each pool of a plan, and their windows.
std::vector<std::int32_t> pool_page_limits(const Plan& plan, std::int64_t kv_tokens, std::int32_t max_sequences);
std::vector<std::int32_t> pool_windows(const Plan& plan);

/// Page `from` of a pool is to be copied to `to` before the batch runs.
struct PageCopy {
  std::size_t pool;
  std::int32_t from;
  std::int32_t to;
};

/// Full pages of K and V are shared by all sequences that begin with the same tokens (under the same context key); of a
/// page that only begins alike a copy is made, because it will be written. What sequences leave stays for later ones
/// until its room is needed. Not thread-safe.
///
/// A state cannot be cut back to fewer tokens: sequences go on from the states that were kept, at ends of pages and of
/// sequences. Of the pages that a run adds, the last, the last full one, and one that others will go on from get a
/// state.
class KvCache {
 public:
  /// Windows by pool, and how many pages each may have.
  KvCache(std::span<const std::int32_t> windows, std::span<const std::int32_t> limits);

  std::size_t num_pools() const { return pools_.size(); }
  KvPages& pages(std::size_t pool) { return pools_[pool].pages; }
  const KvPages& pages(std::size_t pool) const { return pools_[pool].pages; }
  std::int32_t window(std::size_t pool) const { return pools_[pool].window; }
  /// Whether some pool holds states: then nothing that was computed can be taken back, and there are no drafts.
  bool has_state() const { return has_state_; }
  const PrefixIndex& index() const { return index_; }

  /// Hands to a sequence whose pages are all in the index the pages of the tokens that follow, as far as they are there
  /// and want no logits.
  void reuse_pages(Sequence& sequence);
  /// Hands to a sequence without pages all that are there of its tokens, whatever a later row would see.
  void follow(Sequence& sequence);
  /// The next page, which `grow` got, is filled now: it enters the index with the parts of the pools whose bits are
  /// set.
  void add_page(Sequence& sequence, std::uint64_t pools);
  /// The same within the next page, by a copy; true when there was a beginning worth it, and room.
  bool copy_beginning(Sequence& sequence, std::vector<PageCopy>& copies);
  /// Takes that back: the copy was not made.
  void forget_beginning(Sequence& sequence);

  /// Gets pages for positions below `positions`, idle ones of others too; the number of positions that then have one.
  std::int32_t grow(Sequence& sequence, std::int32_t positions);
  /// Whether a sequence could get pages for `positions` without taking one that is in use.
  bool has_room(const Sequence& sequence, std::int32_t positions) const;
  bool has_pages(const Sequence& sequence) const;

  /// More tokens were computed: full pages enter the index, those out of their window leave the sequence.
  void advance(Sequence& sequence);
  /// Pages without computed positions go back.
  void release_unused(Sequence& sequence);
  /// The sequence ends; what it computed stays in the index, a page that is not full as well.
  void retire(Sequence& sequence);
  /// The sequence lets go of its pages of one pool.
  void drop_pool(Sequence& sequence, std::size_t pool);
  /// The sequence lets go of all pages, and nothing of it counts as computed. What is in the index stays there.
  void drop(Sequence& sequence);

 private:
  std::int32_t first_visible_page(std::size_t pool, std::int32_t position) const;
  std::optional<std::int32_t> allocate(std::size_t pool);
  std::int32_t grow_state(Sequence& sequence, std::size_t pool, std::int32_t positions);
  void release_passed(Sequence& sequence, std::int32_t from);
  std::int32_t num_pages(const Sequence& sequence) const;
  void attach(Sequence& sequence);
  void take(Sequence& sequence, std::span<PrefixIndex::Node* const> chain);
  bool sees_its_windows(const Sequence& sequence, std::span<PrefixIndex::Node* const> chain) const;
  void index_page(Sequence& sequence, std::int32_t page);
  void release(Sequence& sequence, std::size_t pool, std::size_t page);
  void count_reused(Sequence& sequence, std::int32_t from);

  std::vector<KvPool> pools_;
  PrefixIndex index_;
  bool has_state_ = false;
};

}  // namespace sterna
