#include "engine/request.h"

#include <utility>

namespace sterna {

void ResultQueue::push(Event event) {
  {
    const std::lock_guard lock(mutex_);
    events_.push_back(std::move(event));
  }
  changed_.notify_all();
}

void ResultQueue::finish(Event event, const Timings& timings, std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (finish_ != FinishReason::kNone) return;
    finish_ = event.finish;
    events_.push_back(std::move(event));
    timings_ = timings;
    error_ = std::move(error);
  }
  changed_.notify_all();
}

std::optional<Event> ResultQueue::next(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [&] { return finish_ != FinishReason::kNone || !events_.empty(); });
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  if (event.finish == FinishReason::kError) std::rethrow_exception(error_);
  return event;
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
