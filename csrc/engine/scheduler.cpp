#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

namespace sterna {
namespace {

/// Rows of the next `count` that want logits.
std::int32_t outputs_of(const Sequence& s, std::int32_t count) {
  const std::int32_t end = s.num_computed + count;
  return std::max(0, end - std::max(s.num_computed, s.output_from));
}

bool comes_before(const Sequence& a, const Sequence& b) {
  return std::tuple(a.priority, a.order) < std::tuple(b.priority, b.order);
}

/// Whether two sequences have the same pages so far and the same tokens in the next one, which neither has computed.
bool have_same_next_page(const Sequence& a, const Sequence& b) {
  if (a.node == nullptr || a.node != b.node) return false;
  const std::int32_t first = a.num_indexed * kPageSlots;
  const std::int32_t end = first + kPageSlots;
  if (a.num_tokens() < end || b.num_tokens() < end) return false;
  return std::equal(a.tokens.begin() + first, a.tokens.begin() + end, b.tokens.begin() + first);
}

}  // namespace

void Scheduler::wait(Sequence& sequence) {
  sequence.state = Sequence::State::kWaiting;
  const auto before = [](const Sequence* a, const Sequence* b) { return comes_before(*a, *b); };
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), &sequence, before), &sequence);
}

void Scheduler::leave(Sequence& sequence) {
  switch (sequence.state) {
    case Sequence::State::kWaiting:
      waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
      break;
    case Sequence::State::kRunning:
      running_.erase(std::find(running_.begin(), running_.end(), &sequence));
      break;
    case Sequence::State::kIdle:
      break;
  }
  sequence.state = Sequence::State::kIdle;
  if (stuck_ == &sequence) stuck_ = nullptr;
}

void Scheduler::add(Sequence& sequence) {
  leave(sequence);
  sequence.order = ++clock_;
  wait(sequence);
}

void Scheduler::retire(Sequence& sequence) {
  leave(sequence);
  cache_.retire(sequence);
}

void Scheduler::remove(Sequence& sequence) {
  leave(sequence);
  cache_.drop(sequence);
}

bool Scheduler::is_picked(const Sequence& sequence) const {
  return std::any_of(picked_.begin(), picked_.end(), [&](const ScheduledRows& r) { return r.sequence == &sequence; });
}

void Scheduler::preempt(Sequence& victim) {
  leave(victim);
  victim.draft.clear();
  cache_.drop(victim);
  wait(victim);
  ++num_preemptions_;
}

/// The last of the running ones that come after `sequence` loses its pages; false when there is none with any.
bool Scheduler::preempt_after(const Sequence& sequence) {
  Sequence* victim = nullptr;
  for (Sequence* s : running_) {
    if (!comes_before(sequence, *s) || !cache_.has_pages(*s) || is_picked(*s)) continue;
    if (!victim || comes_before(*victim, *s)) victim = s;
  }
  if (!victim) return false;
  preempt(*victim);
  return true;
}

std::int32_t Scheduler::grow(Sequence& sequence, std::int32_t positions) {
  std::int32_t have = cache_.grow(sequence, positions);
  while (have < positions && preempt_after(sequence)) have = cache_.grow(sequence, positions);
  return have;
}

std::int32_t Scheduler::take_rows(Sequence& sequence, std::int32_t count, std::int32_t outputs) {
  const std::int32_t without_output = std::max(0, sequence.output_from - sequence.num_computed);
  count = std::min({count, tokens_left_, without_output + std::min(outputs, outputs_left_)});
  if (count <= 0) return 0;
  count = grow(sequence, sequence.num_computed + count) - sequence.num_computed;
  if (count <= 0) return 0;
  outputs = outputs_of(sequence, count);
  picked_.push_back({&sequence, sequence.num_computed, count, outputs});
  tokens_left_ -= count;
  outputs_left_ -= outputs;
  return count;
}

/// Rows of a draft come along where there is room for them; nobody gives way to a guess.
void Scheduler::take_draft(ScheduledRows& rows) {
  Sequence& sequence = *rows.sequence;
  const auto wanted = static_cast<std::int32_t>(sequence.draft.size());
  const std::int32_t count = std::min({wanted, tokens_left_, outputs_left_});
  if (count <= 0 || rows.num_outputs == 0 || cache_.has_state()) return;
  const std::int32_t end = rows.first + rows.count;
  const std::int32_t added = cache_.grow(sequence, end + count) - end;
  rows.count += added;
  rows.num_outputs += added;
  tokens_left_ -= added;
  outputs_left_ -= added;
}

void Scheduler::pick_decode(std::int32_t tokens_kept, std::int32_t outputs_kept) {
  tokens_left_ -= tokens_kept;
  outputs_left_ -= outputs_kept;
  // Whoever is served may preempt others: `running_` changes, so walk over a copy and look again.
  const std::vector<Sequence*> line = running_;
  const std::size_t first = picked_.size();
  for (Sequence* s : line) {
    if (s->state == Sequence::State::kRunning && s->num_pending() == 1 && !is_picked(*s)) take_rows(*s, 1, 1);
  }
  for (std::size_t i = first; i < picked_.size(); ++i) take_draft(picked_[i]);
  tokens_left_ += tokens_kept;
  outputs_left_ += outputs_kept;
}

void Scheduler::admit() {
  while (!waiting_.empty() && !held_) {
    Sequence& next = *waiting_.front();
    if (running_.size() >= static_cast<std::size_t>(limits_.max_sequences)) {
      // Only who is in the background makes room for somebody who comes before.
      Sequence& last = **std::max_element(running_.begin(), running_.end(),
                                          [](const Sequence* a, const Sequence* b) { return comes_before(*a, *b); });
      if (last.priority <= next.priority) return;
      preempt(last);
    }
    cache_.reuse_pages(next);
    // Alone it may take everything, and fail as stuck if that is not enough.
    if (!running_.empty() && !cache_.has_room(next, next.num_tokens() + 1)) {
      cache_.drop(next);
      return;
    }
    waiting_.pop_front();
    next.state = Sequence::State::kRunning;
    running_.push_back(&next);
  }
}

/// Whether one that comes before is about to compute the same page. The first never waits, so somebody moves on.
bool Scheduler::waits_for_page(const Sequence& sequence) const {
  const std::int32_t end = (sequence.num_indexed + 1) * kPageSlots;
  if (sequence.num_computed != end - kPageSlots || end > sequence.output_from) return false;
  const auto computes_it = [&](const Sequence* other) {
    return comes_before(*other, sequence) && have_same_next_page(*other, sequence);
  };
  const auto found = std::find_if(running_.begin(), running_.end(), computes_it);
  if (found == running_.end()) return false;
  const std::int32_t shared = std::min(common_prefix((*found)->tokens, sequence.tokens), sequence.num_tokens() - 1);
  (*found)->kept_state_page = std::min(shared, sequence.output_from) / kPageSlots - 1;
  return true;
}

void Scheduler::pick_prefill(Priority priority) {
  struct Share {
    Sequence* sequence;
    std::int32_t rows;
  };
  std::vector<Share> line;
  for (Sequence* s : running_) {
    if (s->num_pending() <= 1 || s->priority != priority) continue;
    cache_.reuse_pages(*s);
    if (s->num_pending() > 1 && !waits_for_page(*s)) line.push_back({s, 0});
  }
  // Equal shares of the rows, and what the short ones do not need goes to the longer; then served in the order of the
  // line.
  std::vector<Share*> by_length;
  for (Share& share : line) {
    if (cache_.copy_beginning(*share.sequence, copies_)) copied_.resize(copies_.size(), share.sequence);
    by_length.push_back(&share);
  }
  std::stable_sort(by_length.begin(), by_length.end(), [](const Share* a, const Share* b) {
    return a->sequence->num_pending() < b->sequence->num_pending();
  });
  std::int32_t rows = tokens_left_;
  for (std::size_t i = 0; i < by_length.size(); ++i) {
    const std::int32_t equal = rows / static_cast<std::int32_t>(by_length.size() - i);
    by_length[i]->rows = std::min(equal, by_length[i]->sequence->num_pending());
    rows -= by_length[i]->rows;
  }
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (line[i].sequence->state != Sequence::State::kRunning) continue;
    const std::int32_t outputs = std::max(1, outputs_left_ / static_cast<std::int32_t>(line.size() - i));
    // At least one row while there are any: a sequence that cannot get its page must not hide those behind it.
    take_rows(*line[i].sequence, std::max(1, line[i].rows), outputs);
  }
}

const std::vector<ScheduledRows>& Scheduler::pick() {
  picked_.clear();
  copies_.clear();
  copied_.clear();
  stuck_ = nullptr;
  ++num_picks_;
  tokens_left_ = limits_.max_tokens;
  outputs_left_ = limits_.max_outputs;

  admit();
  std::int32_t prefill_tokens = 0;
  std::int32_t prefill_outputs = 0;
  for (const Sequence* s : running_) {
    if (s->num_pending() <= 1) continue;
    prefill_tokens = std::min(limits_.max_tokens, prefill_tokens + s->num_pending());
    prefill_outputs = 1;
  }
  std::int32_t tokens_kept = std::min(prefill_tokens, std::max(1, limits_.max_tokens / 4));
  std::int32_t outputs_kept = prefill_outputs;
  // Where there is only one row to give, decode and prefill take turns.
  const bool decode_turn = num_picks_ % 2 == 0;
  if (tokens_kept >= limits_.max_tokens && decode_turn) tokens_kept = 0;
  if (outputs_kept >= limits_.max_outputs && decode_turn) outputs_kept = 0;
  pick_decode(tokens_kept, outputs_kept);
  pick_prefill(Priority::kInteractive);
  pick_prefill(Priority::kBackground);
  pick_decode(0, 0);  // what prefill left

  if (picked_.empty() && !running_.empty()) {
    stuck_ = *std::min_element(running_.begin(), running_.end(),
                               [](const Sequence* a, const Sequence* b) { return comes_before(*a, *b); });
  }
  return picked_;
}

void Scheduler::advance(std::span<const std::int32_t> counts) {
  for (std::size_t i = 0; i < picked_.size(); ++i) {
    Sequence& sequence = *picked_[i].sequence;
    sequence.num_computed += counts[i];
    sequence.draft.clear();
    cache_.advance(sequence);
    const auto at = std::find(running_.begin(), running_.end(), &sequence);
    std::rotate(at, at + 1, running_.end());
  }
  picked_.clear();
}

void Scheduler::abandon(bool copied) {
  if (!copied) {
    copied_.erase(std::unique(copied_.begin(), copied_.end()), copied_.end());
    for (Sequence* s : copied_) {
      if (s->state == Sequence::State::kRunning) cache_.forget_beginning(*s);
    }
  }
  for (Sequence* s : running_) cache_.release_unused(*s);
  picked_.clear();
}

}  // namespace sterna
