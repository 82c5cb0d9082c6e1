/// The loops that measure a machine, compiled once per instruction set: reading memory in several patterns, and the
/// level's integer dot product with everything in registers.
#pragma once

#include <cstdint>

namespace sterna::cpu {

/// Streams that a read pattern walks at the same time: 1, 2, 4, 8.
constexpr int kReadPatterns = 4;
constexpr int kMaxReadStreams = 1 << (kReadPatterns - 1);
/// Bytes that each stream reads in one round.
constexpr std::int64_t kReadRound = 128;

struct MachineKernels {
  /// Reads `bytes` bytes once, as 2^pattern streams side by side; [pattern][with software prefetch]. `bytes` is a
  /// multiple of kReadRound * kMaxReadStreams. The result depends on every byte, so that no read can be left out.
  std::uint64_t (*read[kReadPatterns][2])(const std::uint8_t* data, std::int64_t bytes);
  /// `rounds` rounds of independent dot products, macs_per_round multiply-accumulates each. The result depends on all.
  std::int64_t (*multiply)(std::int64_t rounds);
  std::int64_t macs_per_round;
};

}  // namespace sterna::cpu
