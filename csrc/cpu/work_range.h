/// How the workers of a step deal out [0, count): everyone walks through a stretch of its own from the front, in bites;
/// who has finished takes from the back of the others. On a quiet machine each worker reads one stream of memory; a
/// slower core, or one that the system took away, is helped.
#pragma once

#include <atomic>
#include <cstdint>

namespace sterna::cpu {

/// What has been taken of one worker's stretch. Zero at the start of a run.
struct alignas(64) WorkRange {
  std::atomic<std::uint64_t> taken{0};  // from the front: low 32 bits; from the back: high 32 bits
};

/// Where the stretch of worker i of n begins; that of the next worker is its end.
constexpr std::int64_t stretch_begin(std::int64_t count, int worker, int num_workers) {
  return count * worker / num_workers;
}

/// Calls fn(begin, end) on pieces of at most `bite` until all workers together have done [0, count); ranges has one
/// entry per worker. count below 2^31.
template <class Fn>
void share_work(WorkRange* ranges, int worker, int num_workers, std::int64_t count, std::int64_t bite, Fn fn) {
  for (int i = 0; i < num_workers; ++i) {
    const int owner = worker + i < num_workers ? worker + i : worker + i - num_workers;
    const std::int64_t begin = stretch_begin(count, owner, num_workers);
    const std::int64_t end = stretch_begin(count, owner + 1, num_workers);
    std::atomic<std::uint64_t>& taken = ranges[owner].taken;
    std::uint64_t seen = taken.load(std::memory_order_relaxed);
    for (;;) {
      const auto front = static_cast<std::int64_t>(seen & 0xFFFFFFFFu);
      const auto back = static_cast<std::int64_t>(seen >> 32);
      const std::int64_t left = end - begin - front - back;
      if (left <= 0) break;
      std::int64_t size = bite < left ? bite : left;
      // A helper leaves the owner half of what it has before it.
      if (i != 0 && size > (left + 1) / 2) size = (left + 1) / 2;
      const std::uint64_t next =
          seen + (i == 0 ? static_cast<std::uint64_t>(size) : static_cast<std::uint64_t>(size) << 32);
      if (!taken.compare_exchange_weak(seen, next, std::memory_order_relaxed)) continue;
      seen = next;
      if (i == 0) {
        fn(begin + front, begin + front + size);
      } else {
        fn(end - back - size, end - back);
      }
    }
  }
}

}  // namespace sterna::cpu
