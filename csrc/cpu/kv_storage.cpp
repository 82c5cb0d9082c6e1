#include "cpu/kv_storage.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace sterna::cpu {
namespace {

// Large enough for huge pages, small enough not to take much more than asked for.
constexpr std::int64_t kSlabBytes = std::int64_t{8} << 20;

}  // namespace

std::span<std::uint8_t> KvStorage::page(std::size_t pool, std::int32_t number) const {
  if (number < 0 || number >= num_pages(pool)) {
    throw ArgumentError("page " + std::to_string(number) + " of " + std::to_string(num_pages(pool)));
  }
  return {pages_[pool][static_cast<std::size_t>(number)], static_cast<std::size_t>(pools()[pool].page_bytes)};
}

void KvStorage::reserve(std::size_t pool, std::int32_t num_pages) {
  const auto page_bytes = static_cast<std::int64_t>(pools()[pool].page_bytes);
  // Before anything is mapped: slabs one by one would be granted long after they no longer fit.
  if (const auto most = static_cast<std::int64_t>(physical_memory()) / std::max<std::int64_t>(1, page_bytes);
      num_pages > most) {
    throw MemoryBudgetError("a KV cache of " + std::to_string(num_pages) + " pages of " + std::to_string(page_bytes) +
                            " bytes is more than the memory of this machine");
  }
  while (this->num_pages(pool) < num_pages) {
    const std::int64_t wanted = num_pages - this->num_pages(pool);
    const std::int64_t count =
        std::max<std::int64_t>(1, std::min(wanted, kSlabBytes / std::max<std::int64_t>(page_bytes, 1)));
    slabs_.emplace_back(static_cast<std::size_t>(count * page_bytes));
    for (std::int64_t i = 0; i < count; ++i) pages_[pool].push_back(slabs_.back().data() + i * page_bytes);
  }
}

}  // namespace sterna::cpu
