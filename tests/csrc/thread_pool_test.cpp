/// The pool and its barrier under load, with more threads than cores, after sleeping, and with callers in other
/// floating-point modes. Meant for the thread sanitizer as well.
#include "cpu/thread_pool.h"

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

using sterna::cpu::ThreadPool;

int failures = 0;

void expect(bool condition, const char* what) {
  if (condition) return;
  std::printf("%s\n", what);
  ++failures;
}

/// Plain integers, handed from step to step: each worker reads what its neighbour wrote before the barrier.
void check_barrier(int size, int steps) {
  ThreadPool pool(size);
  std::vector<std::int64_t> cells(static_cast<std::size_t>(size)), next(cells.size());
  const auto count = static_cast<std::size_t>(size);
  for (int run = 0; run < 3; ++run) {
    pool.run([&](int worker) {
      const auto me = static_cast<std::size_t>(worker);
      for (int step = 0; step < steps; ++step) {
        next[me] = cells[(me + 1) % count] + 1;
        pool.barrier().wait();
        cells[me] = next[me];
        pool.barrier().wait();
      }
    });
  }
  bool exact = true;
  for (const std::int64_t cell : cells) exact = exact && cell == 3 * steps;
  expect(exact, "a worker passed the barrier before all had come");
}

/// Workers that sleep between runs and in the barrier are woken each time.
void check_wake_ups(int size) {
  ThreadPool pool(size);
  std::atomic<int> calls{0};
  for (int run = 0; run < 40; ++run) {
    pool.run([&](int worker) {
      // One comes late, so that the others park.
      if (worker == run % size) std::this_thread::sleep_for(std::chrono::microseconds(run % 4 == 0 ? 3000 : 150));
      pool.barrier().wait();
      ++calls;
    });
    if (run % 8 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  }
  expect(calls == 40 * size, "a worker was not called");
}

void check_modes() {
#if defined(__x86_64__)
  constexpr unsigned kOther = 0x1F80 | 0x8040 | 0x4000;  // flush to zero, subnormals are zero, round up
  for (const int size : {1, 3}) {
    const unsigned before = _mm_getcsr();
    _mm_setcsr(kOther);
    ThreadPool pool(size);
    std::vector<unsigned> modes(static_cast<std::size_t>(size));
    pool.run([&](int worker) { modes[static_cast<std::size_t>(worker)] = _mm_getcsr() & ~0x3Fu; });
    const unsigned after = _mm_getcsr() & ~0x3Fu;
    _mm_setcsr(before);
    expect(after == kOther, "the caller's floating-point mode was changed");
    for (const unsigned mode : modes) expect(mode == 0x1F80, "a worker runs in another floating-point mode");
  }
#endif
}

}  // namespace

int main() {
  for (const int size : {1, 2, 3, 4, 16}) check_barrier(size, size > 4 ? 50 : 1000);
  for (const int size : {1, 2, 5}) check_wake_ups(size);
  check_modes();
  for (int i = 0; i < 200; ++i) {
    const auto pool = std::make_unique<ThreadPool>(1 + i % 5);
    if (i % 3 == 0) pool->run([](int) {});
  }
  std::vector<std::thread> callers;  // pools of several owners at once
  for (int i = 0; i < 3; ++i) callers.emplace_back([] { check_barrier(2, 300); });
  for (std::thread& caller : callers) caller.join();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
