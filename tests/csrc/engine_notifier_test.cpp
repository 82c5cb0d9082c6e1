/// Requests that one reader follows through a Notifier, as an event loop does, while others push, finish and cancel: no
/// event may be missed, and nobody may wait for ever. Meant to run under the thread sanitizer.
#include <poll.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "engine/notifier.h"
#include "engine/request.h"

namespace {

using namespace sterna;

int failures = 0;

void expect(bool ok, const char* what) {
  if (ok) return;
  ++failures;
  std::fprintf(stderr, "failed: %s\n", what);
}

Event text_event(int number) {
  Event event;
  event.text = std::to_string(number);
  return event;
}

/// Whether the descriptor becomes readable within the time.
bool readable(const Notifier& notifier, int milliseconds) {
  pollfd wanted{notifier.descriptor(), POLLIN, 0};
  return poll(&wanted, 1, milliseconds) == 1;
}

void test_marks() {
  Notifier notifier;
  expect(!readable(notifier, 0), "nothing is marked at first");
  for (std::uint64_t i = 0; i < 200'000; ++i) notifier.mark(i);
  expect(readable(notifier, 0), "marks make it readable");
  const auto taken = notifier.take();
  expect(taken.size() == 200'000 && taken.back() == 199'999, "all marks are taken");
  expect(!readable(notifier, 0) && notifier.take().empty(), "a mark is taken once");
}

void test_attaching() {
  const auto notifier = std::make_shared<Notifier>();
  ResultQueue queue;
  queue.notify(notifier, 1, false);
  expect(notifier->take().empty(), "nothing to tell yet");
  queue.push(text_event(1));
  queue.push(text_event(2));
  expect(notifier->take() == std::vector<std::uint64_t>{1}, "told once, as nothing was taken in between");
  expect(queue.ready().size() == 2 && queue.ready().empty(), "both are taken, once");
  queue.push(text_event(3));
  expect(notifier->take() == std::vector<std::uint64_t>{1}, "told again after all was taken");
  queue.notify(notifier, 2, true);
  expect(notifier->take().empty(), "a token is no end");
  queue.notify(notifier, 3, false);
  expect(notifier->take() == std::vector<std::uint64_t>{3}, "what came before counts");
  Event last;
  last.finish = FinishReason::kError;
  queue.finish(std::move(last), {}, std::make_exception_ptr(Error("broken")));
  expect(queue.ready().size() == 1, "an error comes after the tokens");
  try {
    queue.ready();
    expect(false, "the error is thrown");
  } catch (const Error& e) {
    expect(std::string(e.what()) == "broken", "the error is the request's");
  }
  queue.notify(notifier, 4, true);
  expect(notifier->take() == std::vector<std::uint64_t>{4}, "an end before the call counts");
}

void test_threads() {
  constexpr std::uint64_t kRequests = 400;
  constexpr int kEvents = 50;
  const auto notifier = std::make_shared<Notifier>();
  std::vector<ResultQueue> queues(kRequests);
  std::vector<std::thread> writers;
  for (std::uint64_t first = 0; first < 4; ++first) {
    writers.emplace_back([&queues, first] {
      for (int i = 0; i < kEvents; ++i) {
        for (std::uint64_t r = first; r < kRequests; r += 4) queues[r].push(text_event(i));
      }
      for (std::uint64_t r = first; r < kRequests; r += 4) {
        Event last;
        last.finish = FinishReason::kLength;
        queues[r].finish(std::move(last), {}, nullptr);
      }
    });
  }
  std::vector<int> seen(kRequests);
  std::uint64_t ended = 0;
  // Every second one is told of its end only; some are attached when the writers are half through.
  for (std::uint64_t r = 0; r < kRequests; ++r) queues[r].notify(notifier, r, r % 2 == 1);
  while (ended < kRequests) {
    if (!readable(*notifier, 20'000)) {
      expect(false, "a request was forgotten");
      break;
    }
    for (const std::uint64_t r : notifier->take()) {
      for (const Event& event : queues[r].ready()) {
        if (event.finish != FinishReason::kNone) {
          ++ended;
          expect(seen[r] == kEvents, "all events came before the end");
        } else {
          expect(event.text == std::to_string(seen[r]++), "events come in order");
        }
      }
    }
  }
  for (std::thread& writer : writers) writer.join();
}

}  // namespace

int main() {
  test_marks();
  test_attaching();
  for (int round = 0; round < 5; ++round) test_threads();
  if (failures == 0) std::puts("notifier: ok");
  return failures == 0 ? 0 : 1;
}
