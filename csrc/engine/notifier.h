/// Tells an event loop which of many requests have news: numbers are gathered here, and a file descriptor becomes
/// readable, for epoll and the like to wake up by.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace sterna {

/// Any thread marks; one thread waits for the descriptor and takes. A pipe and no thread: the engine's write wakes the
/// loop itself, nobody stands in between.
class Notifier {
 public:
  /// Throws Error when the process has no descriptor left.
  Notifier();
  ~Notifier();
  Notifier(const Notifier&) = delete;
  Notifier& operator=(const Notifier&) = delete;

  /// Readable while there are marks. Only to be waited for: `take` reads it.
  int descriptor() const { return ends_[0]; }
  void mark(std::uint64_t number);
  /// What was marked since the last call, in order.
  std::vector<std::uint64_t> take();

 private:
  int ends_[2];
  std::mutex mutex_;
  std::vector<std::uint64_t> marked_;
};

}  // namespace sterna
