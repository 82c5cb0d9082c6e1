/// What this machine can do at most: bytes read per second and multiply-accumulates of bytes per second. `sterna bench`
/// holds its results against these.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/buffer.h"
#include "cpu/machine_kernels.h"
#include "cpu/thread_pool.h"

namespace sterna::cpu {

/// How fast all threads together read memory when each walks its part as `streams` streams side by side.
struct ReadSpeed {
  int streams = 0;
  bool prefetch = false;
  double bytes_per_second = 0.0;
};

/// The limits of some threads with the instructions of one level. Not for several threads at a time.
class Machine {
 public:
  /// Reads are measured over buffer_bytes, rounded down to whole rounds of all threads. Throws DeviceError for a level
  /// that is not there, ArgumentError for a buffer with less than one round for each thread, MemoryBudgetError.
  Machine(int threads, std::string_view isa, std::int64_t buffer_bytes);

  int threads() const { return pool_.size(); }
  std::int64_t buffer_bytes() const { return part_bytes_ * pool_.size(); }

  /// Each pattern's best of `repetitions`, which take turns.
  std::vector<ReadSpeed> read_speeds(int repetitions);
  /// Multiply-accumulates per second of the level's integer dot product, operands in registers: best of `repetitions`
  /// runs of some milliseconds.
  double macs_per_second(int repetitions);

 private:
  const MachineKernels& kernels_;
  ThreadPool pool_;
  std::int64_t part_bytes_;  // of one thread
  Buffer buffer_;
};

}  // namespace sterna::cpu
