#include "engine/request.h"

#include <utility>

namespace sterna {

/// Wakes who waits once the lock is gone, which they need.
void ResultQueue::add(Event event, std::unique_lock<std::mutex> lock) {
  events_.push_back(std::move(event));
  std::shared_ptr<Notifier> notifier;
  if (notifier_ && !told_ && (finish_ != FinishReason::kNone || !only_end_)) {
    notifier = notifier_;
    told_ = true;
  }
  const std::uint64_t number = number_;
  lock.unlock();
  changed_.notify_all();
  if (notifier) notifier->mark(number);
}

void ResultQueue::push(Event event) { add(std::move(event), std::unique_lock(mutex_)); }

void ResultQueue::finish(Event event, const Timings& timings, std::exception_ptr error) {
  std::unique_lock lock(mutex_);
  if (finish_ != FinishReason::kNone) return;
  finish_ = event.finish;
  timings_ = timings;
  error_ = std::move(error);
  add(std::move(event), std::move(lock));
}

std::optional<Event> ResultQueue::next(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return finish_ != FinishReason::kNone || !events_.empty(); });
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  told_ = told_ && !events_.empty();
  if (event.finish == FinishReason::kError) std::rethrow_exception(error_);
  return event;
}

std::vector<Event> ResultQueue::ready() {
  std::vector<Event> events;
  const std::lock_guard lock(mutex_);
  while (!events_.empty()) {
    const bool failed = events_.front().finish == FinishReason::kError;
    if (failed && !events.empty()) return events;
    events.push_back(std::move(events_.front()));
    events_.pop_front();
    if (failed) std::rethrow_exception(error_);
  }
  told_ = false;
  return events;
}

void ResultQueue::notify(std::shared_ptr<Notifier> notifier, std::uint64_t number, bool only_end) {
  {
    const std::lock_guard lock(mutex_);
    notifier_ = notifier;
    number_ = number;
    only_end_ = only_end;
    told_ = finish_ != FinishReason::kNone || (!only_end && !events_.empty());
    if (!told_) return;
  }
  notifier->mark(number);
}

bool ResultQueue::wait_finished(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, timeout, [&] { return finish_ != FinishReason::kNone; });
}

bool ResultQueue::exhausted() {
  const std::lock_guard lock(mutex_);
  return finish_ != FinishReason::kNone && events_.empty();
}

bool ResultQueue::finished() {
  const std::lock_guard lock(mutex_);
  return finish_ != FinishReason::kNone;
}

FinishReason ResultQueue::finish_reason() {
  const std::lock_guard lock(mutex_);
  if (finish_ == FinishReason::kError) std::rethrow_exception(error_);
  return finish_;
}

Timings ResultQueue::timings() {
  const std::lock_guard lock(mutex_);
  return timings_;
}

}  // namespace sterna
