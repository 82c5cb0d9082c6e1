#include "cpu/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>

#include "base/error.h"
#include "cpu/isa.h"

namespace sterna::cpu {
namespace scalar {
extern const MachineKernels machine_kernels;
}
#if defined(STERNA_X86)
namespace avx2 {
extern const MachineKernels machine_kernels;
}
namespace avx512 {
extern const MachineKernels machine_kernels;
}
#endif

namespace {

const MachineKernels& kernels_of(std::string_view isa) {
  if (!is_supported(isa)) kernel_table(isa);  // throws, and says why
#if defined(STERNA_X86)
  if (isa == "avx512") return avx512::machine_kernels;
  if (isa == "avx2") return avx2::machine_kernels;
#endif
  return scalar::machine_kernels;
}

std::int64_t part_of(std::int64_t bytes, int threads) {
  constexpr std::int64_t round = kReadRound * kMaxReadStreams;
  if (threads < 1 || bytes / threads < round) {
    throw ArgumentError("a buffer of " + std::to_string(bytes) + " bytes is too small for " + std::to_string(threads) +
                        " threads");
  }
  return bytes / threads / round * round;
}

/// Wall time of one job on all workers, in seconds.
template <class Job>
double seconds_of(ThreadPool& pool, const Job& job) {
  const auto begin = std::chrono::steady_clock::now();
  pool.run(job);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Machine::Machine(int threads, std::string_view isa, std::int64_t buffer_bytes)
    : kernels_(kernels_of(isa)),
      pool_(std::max(threads, 1)),
      part_bytes_(part_of(buffer_bytes, threads)),
      buffer_(static_cast<std::size_t>(part_bytes_ * threads)) {
  // A page exists, near the thread that reads it, once it has been written to.
  constexpr std::int64_t page = 4096;
  pool_.run([this](int worker) {
    std::uint8_t* part = buffer_.data() + worker * part_bytes_;
    for (std::int64_t at = 0; at < part_bytes_; at += page) part[at] = 1;
  });
}

std::vector<ReadSpeed> Machine::read_speeds(int repetitions) {
  std::vector<ReadSpeed> speeds;
  for (int pattern = 0; pattern < kReadPatterns; ++pattern) {
    for (const bool prefetch : {false, true}) speeds.push_back({1 << pattern, prefetch, 0.0});
  }
  std::atomic<std::uint64_t> sum{0};
  for (int repetition = 0; repetition < repetitions; ++repetition) {
    for (std::size_t i = 0; i < speeds.size(); ++i) {
      const auto read = kernels_.read[i / 2][i % 2];
      const double seconds = seconds_of(
          pool_, [&](int worker) { sum.fetch_add(read(buffer_.data() + worker * part_bytes_, part_bytes_)); });
      speeds[i].bytes_per_second = std::max(speeds[i].bytes_per_second, static_cast<double>(buffer_bytes()) / seconds);
    }
  }
  return speeds;
}

double Machine::macs_per_second(int repetitions) {
  constexpr double kRunSeconds = 0.01;
  std::atomic<std::int64_t> sum{0};
  const auto seconds_for = [&](std::int64_t rounds) {
    return seconds_of(pool_, [&](int) { sum.fetch_add(kernels_.multiply(rounds)); });
  };
  std::int64_t rounds = 1000;
  while (seconds_for(rounds) < kRunSeconds) rounds *= 2;
  double best = seconds_for(rounds);
  for (int repetition = 1; repetition < repetitions; ++repetition) best = std::min(best, seconds_for(rounds));
  return static_cast<double>(rounds * kernels_.macs_per_round) * pool_.size() / best;
}

}  // namespace sterna::cpu
