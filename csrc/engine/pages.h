/// Numbers and reference counts of KV pages. Their bytes belong to the Plan.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

namespace sterna {

/// Gives out the lowest free number first, so that the plan's pool grows only when it must. Not thread-safe.
class KvPages {
 public:
  explicit KvPages(std::int32_t limit) : limit_(limit) {}

  /// Page numbers are below it.
  std::int32_t limit() const { return limit_; }
  /// Lowering it does not take pages away: numbers at or above it are not given out again.
  void set_limit(std::int32_t limit) { limit_ = limit; }

  std::int32_t num_in_use() const { return num_in_use_; }
  std::int32_t num_free() const { return num_in_use_ < limit_ ? limit_ - num_in_use_ : 0; }
  /// All numbers ever given out are below it: what the plan must have room for.
  std::int32_t high_water() const { return static_cast<std::int32_t>(references_.size()); }

  /// A page with one reference, or nothing when `limit` are in use.
  std::optional<std::int32_t> allocate();
  /// One reference more, for a page in use.
  void share(std::int32_t page);
  /// One reference less; the last one frees the page.
  void release(std::int32_t page);
  std::int32_t references(std::int32_t page) const;

 private:
  std::int32_t limit_;
  std::int32_t num_in_use_ = 0;
  std::vector<std::int32_t> references_;                                               // by page
  std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> free_;  // of numbers given out before
};

}  // namespace sterna
