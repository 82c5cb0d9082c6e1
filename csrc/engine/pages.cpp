#include "engine/pages.h"

#include <string>

#include "base/error.h"

namespace sterna {

std::optional<std::int32_t> KvPages::allocate() {
  std::int32_t page = high_water();
  if (!free_.empty()) {
    page = free_.top();
    if (page >= limit_) return std::nullopt;
    free_.pop();
  } else {
    if (page >= limit_) return std::nullopt;
    references_.push_back(0);
  }
  references_[static_cast<std::size_t>(page)] = 1;
  ++num_in_use_;
  return page;
}

std::int32_t KvPages::references(std::int32_t page) const {
  if (page < 0 || page >= high_water()) return 0;
  return references_[static_cast<std::size_t>(page)];
}

void KvPages::share(std::int32_t page) {
  if (references(page) == 0) throw ArgumentError("page " + std::to_string(page) + " is not in use");
  ++references_[static_cast<std::size_t>(page)];
}

void KvPages::release(std::int32_t page) {
  if (references(page) == 0) throw ArgumentError("page " + std::to_string(page) + " is not in use");
  if (--references_[static_cast<std::size_t>(page)] > 0) return;
  --num_in_use_;
  free_.push(page);
}

}  // namespace sterna
