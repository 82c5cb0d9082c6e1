#include "engine/scheduler.h"

#include <algorithm>

namespace sterna {
namespace {

/// Rows of the next `count` that want logits.
std::int32_t outputs_of(const Sequence& s, std::int32_t count) {
  const std::int32_t end = s.num_computed + count;
  return std::max(0, end - std::max(s.num_computed, s.output_from));
}

}  // namespace

void Scheduler::wait(Sequence& sequence) {
  sequence.state = Sequence::State::kWaiting;
  const auto later = [](std::uint64_t order, const Sequence* s) { return order < s->order; };
  waiting_.insert(std::upper_bound(waiting_.begin(), waiting_.end(), sequence.order, later), &sequence);
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
      idle_.remove(&sequence);
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

void Scheduler::adopt(Sequence& sequence) {
  leave(sequence);
  sequence.order = ++clock_;
  if (!sequence.pages.empty()) idle_.push_back(&sequence);
}

void Scheduler::park(Sequence& sequence) {
  release_unused_pages(sequence, pages_);
  adopt(sequence);
}

void Scheduler::remove(Sequence& sequence) {
  leave(sequence);
  drop_cache(sequence);
}

void Scheduler::drop_cache(Sequence& sequence) {
  sequence.num_computed = 0;
  release_unused_pages(sequence, pages_);
}

bool Scheduler::is_picked(const Sequence& sequence) const {
  return std::any_of(picked_.begin(), picked_.end(), [&](const ScheduledRows& r) { return r.sequence == &sequence; });
}

bool Scheduler::free_a_page(const Sequence& wanted_by) {
  while (!idle_.empty()) {
    Sequence& victim = *idle_.front();
    idle_.pop_front();
    drop_cache(victim);
    if (pages_.num_free() > 0) return true;
  }
  while (true) {
    Sequence* victim = nullptr;
    for (Sequence* s : running_) {
      if (s->order > wanted_by.order && !s->pages.empty() && !is_picked(*s) && (!victim || s->order > victim->order)) {
        victim = s;
      }
    }
    if (!victim) return false;
    leave(*victim);
    drop_cache(*victim);
    wait(*victim);
    ++num_preemptions_;
    if (pages_.num_free() > 0) return true;
  }
}

std::int32_t Scheduler::grow(Sequence& sequence, std::int32_t positions) {
  const auto needed = static_cast<std::size_t>(pages_for(positions));
  while (sequence.pages.size() < needed) {
    const auto page = pages_.allocate();
    if (page) {
      sequence.pages.push_back(*page);
    } else if (!free_a_page(sequence)) {
      break;
    }
  }
  return std::min(positions, static_cast<std::int32_t>(sequence.pages.size()) * kPageSlots);
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

void Scheduler::pick_decode(std::int32_t tokens_kept, std::int32_t outputs_kept) {
  tokens_left_ -= tokens_kept;
  outputs_left_ -= outputs_kept;
  // Whoever is served may preempt others: `running_` changes, so walk over a copy and look again.
  const std::vector<Sequence*> line = running_;
  for (Sequence* s : line) {
    if (s->state == Sequence::State::kRunning && s->num_pending() == 1 && !is_picked(*s)) take_rows(*s, 1, 1);
  }
  tokens_left_ += tokens_kept;
  outputs_left_ += outputs_kept;
}

void Scheduler::admit() {
  while (!waiting_.empty() && running_.size() < static_cast<std::size_t>(limits_.max_sequences)) {
    Sequence& next = *waiting_.front();
    const auto needed = pages_for(std::int64_t{next.num_tokens()} + 1) - static_cast<std::int32_t>(next.pages.size());
    std::int64_t available = pages_.num_free();
    for (const Sequence* s : idle_) available += static_cast<std::int64_t>(s->pages.size());
    // Alone it may take everything, and fail as stuck if that is not enough.
    if (needed > available && !running_.empty()) return;
    waiting_.pop_front();
    next.state = Sequence::State::kRunning;
    running_.push_back(&next);
  }
}

void Scheduler::pick_prefill() {
  struct Share {
    Sequence* sequence;
    std::int32_t rows;
  };
  std::vector<Share> line;
  for (Sequence* s : running_) {
    if (s->num_pending() > 1) line.push_back({s, 0});
  }
  // Equal shares of the rows, and what the short ones do not need goes to the longer; then served in the order of the
  // line.
  std::vector<Share*> by_length;
  for (Share& share : line) by_length.push_back(&share);
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
  pick_prefill();
  pick_decode(0, 0);  // what prefill left

  if (picked_.empty() && !running_.empty()) {
    stuck_ = *std::min_element(running_.begin(), running_.end(),
                               [](const Sequence* a, const Sequence* b) { return a->order < b->order; });
  }
  return picked_;
}

void Scheduler::advance() {
  for (const ScheduledRows& rows : picked_) {
    rows.sequence->num_computed += rows.count;
    const auto at = std::find(running_.begin(), running_.end(), rows.sequence);
    std::rotate(at, at + 1, running_.end());
  }
  picked_.clear();
}

void Scheduler::abandon() {
  for (Sequence* s : running_) release_unused_pages(*s, pages_);
  picked_.clear();
}

}  // namespace sterna
