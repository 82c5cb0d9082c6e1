/// Threads that walk a step list together, and the barrier that they meet at after each step.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace sterna::cpu {

/// Spins for a few tens of microseconds, then sleeps, so that two barriers a microsecond apart cost no system call and
/// an overloaded machine loses no time slice to waiting.
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  void wait() noexcept;

 private:
  const int count_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
};

/// `size` workers: the calling thread is worker 0, the others wait between runs.
class ThreadPool {
 public:
  /// Throws DeviceError when the system has no more threads.
  explicit ThreadPool(int size);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return size_; }
  Barrier& barrier() { return barrier_; }

  /// Calls job(worker) once on every worker and returns when all have finished. The job must not throw. Throws Error in
  /// a child process, which fork() has left without the workers.
  void run(const std::function<void(int worker)>& job);

 private:
  void work(int worker);
  void stop() noexcept;

  const int size_;
  const int process_;
  Barrier barrier_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<std::uint32_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  std::vector<std::thread> threads_;
};

}  // namespace sterna::cpu
