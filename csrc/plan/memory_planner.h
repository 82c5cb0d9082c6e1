/// Places buffers with known lifetimes into one arena.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sterna {

/// A buffer that is alive from step `first` to step `last`, both included.
struct Lifetime {
  std::int64_t bytes = 0;
  int first = 0;
  int last = 0;
};

struct Placement {
  std::vector<std::int64_t> offsets;  // one per lifetime, multiples of the alignment
  std::int64_t arena_bytes = 0;
};

/// Greedy by size: the largest buffer first, each at the lowest offset where no buffer that lives at the same time is
/// in the way.
Placement place(std::span<const Lifetime> lifetimes, std::int64_t alignment = 64);

}  // namespace sterna
