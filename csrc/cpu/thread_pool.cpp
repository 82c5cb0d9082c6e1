#include "cpu/thread_pool.h"

#include <unistd.h>

#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/float_mode.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sterna::cpu {
namespace {

// About 50 microseconds of pauses.
constexpr int kSpins = 2000;

void pause() noexcept {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until `value` is no longer `old`. Whoever changes it must do so sequentially consistent before it notifies:
/// notify_all looks for sleepers first, and a weaker store could pass that look, leaving a sleeper for ever.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old, int spins) noexcept {
  for (int i = 0; i < spins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

}  // namespace

void Barrier::wait() noexcept {
  if (count_ == 1) return;
  const std::uint32_t generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1);
    generation_.notify_all();  // no system call where nobody sleeps
    return;
  }
  wait_for_change(generation_, generation, kSpins);
}

ThreadPool::ThreadPool(int size) : size_(size), process_(::getpid()), barrier_(size) {
  threads_.reserve(static_cast<std::size_t>(size - 1));
  try {
    for (int worker = 1; worker < size; ++worker) threads_.emplace_back([this, worker] { work(worker); });
  } catch (const std::system_error& error) {
    const std::size_t started = threads_.size();
    stop();
    throw DeviceError("the system gave " + std::to_string(started + 1) + " of " + std::to_string(size) +
                      " threads: " + error.what());
  }
}

ThreadPool::~ThreadPool() {
  if (::getpid() == process_) {
    stop();
  } else {
    // The threads are not there to be joined. What stands for them is left behind, as a joinable std::thread cannot
    // die.
    new std::vector<std::thread>(std::move(threads_));
  }
}

void ThreadPool::stop() noexcept {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
}

void ThreadPool::run(const std::function<void(int)>& job) {
  const FloatMode mode;
  if (::getpid() != process_) throw Error("a model loaded before fork() cannot be used in the child process");
  if (size_ == 1) {
    job(0);
    return;
  }
  job_ = &job;
  running_.store(size_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1);
  generation_.notify_all();
  job(0);
  for (int left = running_.load(std::memory_order_acquire); left != 0;
       left = running_.load(std::memory_order_acquire)) {
    wait_for_change(running_, left, kSpins);
  }
}

void ThreadPool::work(int worker) {
  const FloatMode mode;
  std::uint32_t seen = 0;
  while (true) {
    wait_for_change(generation_, seen, 4 * kSpins);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    (*job_)(worker);
    running_.fetch_sub(1);
    running_.notify_one();
  }
}

}  // namespace sterna::cpu
