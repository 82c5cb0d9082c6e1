#include "plan/memory_planner.h"

#include <algorithm>
#include <numeric>

namespace sterna {

Placement place(std::span<const Lifetime> lifetimes, std::int64_t alignment) {
  const auto align = [=](std::int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; };
  Placement placement;
  placement.offsets.resize(lifetimes.size());

  std::vector<std::size_t> order(lifetimes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return lifetimes[a].bytes > lifetimes[b].bytes; });

  std::vector<std::size_t> placed;  // by offset
  for (const std::size_t i : order) {
    const Lifetime& wanted = lifetimes[i];
    std::int64_t offset = 0;
    for (const std::size_t j : placed) {
      const Lifetime& other = lifetimes[j];
      if (other.last < wanted.first || wanted.last < other.first) continue;
      if (placement.offsets[j] >= offset + align(wanted.bytes)) break;
      offset = std::max(offset, placement.offsets[j] + align(other.bytes));
    }
    placement.offsets[i] = offset;
    placement.arena_bytes = std::max(placement.arena_bytes, offset + align(wanted.bytes));
    placed.insert(
        std::upper_bound(placed.begin(), placed.end(), i,
                         [&](std::size_t a, std::size_t b) { return placement.offsets[a] < placement.offsets[b]; }),
        i);
  }
  return placement;
}

}  // namespace sterna
