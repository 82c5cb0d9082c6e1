#include "engine/sequence.h"

#include <algorithm>

namespace sterna {

void release_unused_pages(Sequence& sequence, KvPages& pages) {
  const auto needed = static_cast<std::size_t>(pages_for(sequence.num_computed));
  while (sequence.pages.size() > needed) {
    pages.release(sequence.pages.back());
    sequence.pages.pop_back();
  }
}

void truncate_cache(Sequence& sequence, std::int32_t length, KvPages& pages) {
  length = std::min(length, sequence.num_computed);
  if (length % kPageSlots != 0 && pages.references(sequence.pages[static_cast<std::size_t>(length / kPageSlots)]) > 1) {
    length -= length % kPageSlots;
  }
  sequence.num_computed = length;
  release_unused_pages(sequence, pages);
}

Sequence fork_sequence(const Sequence& source, KvPages& pages) {
  Sequence copy;
  copy.tokens = source.tokens;
  const std::int32_t full = source.num_computed / kPageSlots;
  copy.num_computed = full * kPageSlots;
  copy.pages.assign(source.pages.begin(), source.pages.begin() + full);
  for (const std::int32_t page : copy.pages) pages.share(page);
  return copy;
}

std::int32_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const auto shorter = std::min(a.size(), b.size());
  const auto differs = std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(shorter), b.begin());
  return static_cast<std::int32_t>(differs.first - a.begin());
}

}  // namespace sterna
