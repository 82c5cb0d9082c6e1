/// Decides which rows the next Batch has: pure logic over sequences and page numbers, no model, no threads.
#pragma once

#include <cstdint>
#include <deque>
#include <list>
#include <vector>

#include "engine/pages.h"
#include "engine/sequence.h"

namespace sterna {

struct SchedulerLimits {
  std::int32_t max_tokens;     // rows per batch
  std::int32_t max_outputs;    // logit rows per batch
  std::int32_t max_sequences;  // running at once
};

/// Rows [first, first + count) of one sequence; the last `num_outputs` of them want logits.
struct ScheduledRows {
  Sequence* sequence;
  std::int32_t first;
  std::int32_t count;
  std::int32_t num_outputs;
};

/// Sequences wait in order of arrival, run, and leave; an idle one may keep its pages (`park`).
///
/// Each batch: first the running sequences with one token to compute (decode), then chunks of those with more
/// (prefill), who divide the rest of the rows evenly. Prefill is sure of a quarter of the rows and of one logit row.
/// What was served goes to the back of the line, so every running sequence moves on within a bounded number of batches.
///
/// A sequence that needs a page when none is free takes those of idle sequences, least recently used first, then those
/// of the running sequence that arrived last, if that was after its own arrival; the loser waits again, in its old
/// place, and is computed again later. So the oldest can always move on, unless the limit is too small for it alone
/// (`stuck`).
///
/// Sequences are the caller's and must outlive their stay. Not thread-safe.
class Scheduler {
 public:
  Scheduler(SchedulerLimits limits, KvPages& pages) : limits_(limits), pages_(pages) {}

  /// An idle sequence with at least one pending token starts to wait.
  void add(Sequence& sequence);
  /// Leaves; pages are kept until others need them, or given back at once.
  void park(Sequence& sequence);
  void remove(Sequence& sequence);
  /// An idle sequence, parked or new, that holds pages becomes known, so that they can be taken back.
  void adopt(Sequence& sequence);

  /// Chooses the rows of the next batch and gets pages for them. Empty when there is nothing to do (or all are stuck).
  const std::vector<ScheduledRows>& pick();
  const std::vector<ScheduledRows>& picked() const { return picked_; }
  /// After a pick: a sequence that cannot get the pages for its next row, though no other holds any that it may take.
  Sequence* stuck() const { return stuck_; }
  /// The picked rows are computed.
  void advance();
  /// The picked rows are not computed; pages taken for them go back.
  void abandon();

  std::size_t num_running() const { return running_.size(); }
  std::size_t num_waiting() const { return waiting_.size(); }
  std::uint64_t num_preemptions() const { return num_preemptions_; }

 private:
  bool is_picked(const Sequence& sequence) const;
  /// Rows for those with one pending token; some are kept back for prefill.
  void pick_decode(std::int32_t tokens_kept, std::int32_t outputs_kept);
  void admit();
  void pick_prefill();
  /// Adds up to `count` rows with up to `outputs` logit rows, as pages allow; the number added.
  std::int32_t take_rows(Sequence& sequence, std::int32_t count, std::int32_t outputs);
  /// Gets pages for positions below `positions` if it can; the number of positions that then have one.
  std::int32_t grow(Sequence& sequence, std::int32_t positions);
  bool free_a_page(const Sequence& wanted_by);
  void drop_cache(Sequence& sequence);
  void wait(Sequence& sequence);
  void leave(Sequence& sequence);

  SchedulerLimits limits_;
  KvPages& pages_;
  std::deque<Sequence*> waiting_;   // by arrival
  std::vector<Sequence*> running_;  // next to be served first
  std::list<Sequence*> idle_;       // with pages; least recently used first
  std::vector<ScheduledRows> picked_;
  std::int32_t tokens_left_ = 0;
  std::int32_t outputs_left_ = 0;
  Sequence* stuck_ = nullptr;
  std::uint64_t clock_ = 0;
  std::uint64_t num_picks_ = 0;
  std::uint64_t num_preemptions_ = 0;
};

}  // namespace sterna
