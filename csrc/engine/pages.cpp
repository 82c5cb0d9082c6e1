#include "engine/pages.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace sterna {

std::int32_t KvPages::num_free() const { return std::max(0, limit_ - num_in_use_ - num_idle_); }

std::optional<std::int32_t> KvPages::allocate() {
  std::int32_t number = high_water();
  if (!free_.empty()) {
    number = free_.top();
    if (number >= limit_) return std::nullopt;
    free_.pop();
  } else {
    if (number >= limit_) return std::nullopt;
    pages_.emplace_back();
  }
  pages_[static_cast<std::size_t>(number)].references = 1;
  ++num_in_use_;
  return number;
}

KvPages::Page& KvPages::held(std::int32_t page) {
  if (page >= 0 && page < high_water()) {
    Page& found = pages_[static_cast<std::size_t>(page)];
    if (found.references > 0 || found.kept) return found;
  }
  throw ArgumentError("page " + std::to_string(page) + " is not in use");
}

void KvPages::count(const Page& page, std::int32_t sign) {
  if (page.references > 0) {
    num_in_use_ += sign;
  } else if (page.kept) {
    num_idle_ += sign;
  }
}

std::int32_t KvPages::references(std::int32_t page) const {
  return page < 0 || page >= high_water() ? 0 : pages_[static_cast<std::size_t>(page)].references;
}

bool KvPages::is_idle(std::int32_t page) const {
  return page >= 0 && page < high_water() && references(page) == 0 && pages_[static_cast<std::size_t>(page)].kept;
}

void KvPages::share(std::int32_t page) {
  Page& shared = held(page);
  count(shared, -1);
  ++shared.references;
  count(shared, 1);
}

void KvPages::release(std::int32_t page) {
  if (references(page) == 0) throw ArgumentError("page " + std::to_string(page) + " is not in use");
  Page& released = held(page);
  count(released, -1);
  --released.references;
  count(released, 1);
  if (released.references == 0 && !released.kept) free_.push(page);
}

void KvPages::keep(std::int32_t page) {
  Page& kept = held(page);
  count(kept, -1);
  kept.kept = true;
  count(kept, 1);
}

void KvPages::let_go(std::int32_t page) {
  Page& dropped = held(page);
  if (!dropped.kept) throw ArgumentError("page " + std::to_string(page) + " is not kept");
  count(dropped, -1);
  dropped.kept = false;
  count(dropped, 1);
  if (dropped.references == 0) free_.push(page);
}

}  // namespace sterna
