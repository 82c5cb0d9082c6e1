/// Decides which rows the next Batch has: pure logic over sequences and page numbers, no model, no threads.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/sequence.h"

namespace sterna {

struct SchedulerLimits {
  std::int32_t max_tokens;     // rows per batch
  std::int32_t max_outputs;    // logit rows per batch
  std::int32_t max_sequences;  // running at once
};

/// Rows [first, first + count) of one sequence; the last `num_outputs` of them want logits. Rows beyond the sequence's
/// tokens are those of its draft.
struct ScheduledRows {
  Sequence* sequence;
  std::int32_t first;
  std::int32_t count;
  std::int32_t num_outputs;
};

/// Sequences wait, run, and leave; interactive ones come before those in the background, then in order of arrival. Each
/// uses what the cache has of its tokens; where two are about to compute the same page, the later one waits for the
/// earlier one's.
///
/// Each batch: first the running sequences with one token to compute (decode, with their drafts), then chunks of those
/// with more (prefill), who divide the rest of the rows evenly; those in the background get what the interactive leave.
/// Prefill is sure of a quarter of the rows and of one logit row. What was served goes to the back of the line, so
/// every running sequence moves on within a bounded number of batches.
///
/// A sequence that needs a page when none is free or idle takes those of the running sequence that comes last, if that
/// comes after itself; the loser waits again, in its old place, and is computed again later. So the first can always
/// move on, unless the limit is too small for it alone (`stuck`).
///
/// Sequences are the caller's and must outlive their stay. Not thread-safe.
class Scheduler {
 public:
  Scheduler(SchedulerLimits limits, KvCache& cache) : limits_(limits), cache_(cache) {}

  /// An idle sequence with at least one pending token starts to wait.
  void add(Sequence& sequence);
  /// Leaves; what it computed stays in the cache.
  void retire(Sequence& sequence);
  /// Stays, but nothing of it counts as computed.
  void forget(Sequence& sequence) { cache_.drop(sequence); }
  /// Leaves, and nothing of what is not shared stays.
  void remove(Sequence& sequence);

  /// While held, nobody who waits begins to run: others wait for the pages that those who run give back.
  void hold(bool held) { held_ = held; }

  /// Chooses the rows of the next batch and gets pages for them. Empty when there is nothing to do (or all are stuck).
  const std::vector<ScheduledRows>& pick();
  const std::vector<ScheduledRows>& picked() const { return picked_; }
  /// To be made, in this order, before the batch runs.
  const std::vector<PageCopy>& copies() const { return copies_; }
  /// After a pick: a sequence that cannot get the pages for its next row, though no other holds any that it may take.
  Sequence* stuck() const { return stuck_; }
  /// The picked rows are computed; of those of entry `i` the first `counts[i]` hold, the others were wrong drafts.
  void advance(std::span<const std::int32_t> counts);
  /// The picked rows are not computed; pages taken for them go back. The copies may have been made or not.
  void abandon(bool copied);

  std::size_t num_running() const { return running_.size(); }
  std::size_t num_waiting() const { return waiting_.size(); }
  std::uint64_t num_preemptions() const { return num_preemptions_; }

 private:
  bool is_picked(const Sequence& sequence) const;
  /// Rows for those with one pending token; some are kept back for prefill.
  void pick_decode(std::int32_t tokens_kept, std::int32_t outputs_kept);
  void admit();
  void pick_prefill(Priority priority);
  bool waits_for_page(const Sequence& sequence) const;
  /// Adds up to `count` rows with up to `outputs` logit rows, as pages allow; the number added.
  std::int32_t take_rows(Sequence& sequence, std::int32_t count, std::int32_t outputs);
  void take_draft(ScheduledRows& rows);
  /// Gets pages for positions below `positions` if it can; the number of positions that then have one.
  std::int32_t grow(Sequence& sequence, std::int32_t positions);
  bool preempt_after(const Sequence& sequence);
  void preempt(Sequence& victim);
  void wait(Sequence& sequence);
  void leave(Sequence& sequence);

  SchedulerLimits limits_;
  KvCache& cache_;
  std::deque<Sequence*> waiting_;   // first to be served first
  std::vector<Sequence*> running_;  // next to be served first
  std::vector<ScheduledRows> picked_;
  std::vector<PageCopy> copies_;
  std::vector<Sequence*> copied_;  // whose copies they are
  std::int32_t tokens_left_ = 0;
  std::int32_t outputs_left_ = 0;
  Sequence* stuck_ = nullptr;
  bool held_ = false;
  std::uint64_t clock_ = 0;
  std::uint64_t num_picks_ = 0;
  std::uint64_t num_preemptions_ = 0;
};

}  // namespace sterna
