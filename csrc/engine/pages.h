/// Numbers of KV pages and who holds them. Their bytes belong to the Plan.
#pragma once

#include <cstdint>
#include <optional>
#include <queue>
#include <vector>

namespace sterna {

/// One pool. A page is in use while sequences hold it, idle while only the prefix index keeps it, and free otherwise.
/// Gives out the lowest free number first, so that the plan's pool grows only when it must. Not thread-safe.
class KvPages {
 public:
  explicit KvPages(std::int32_t limit) : limit_(limit) {}

  /// Page numbers are below it.
  std::int32_t limit() const { return limit_; }
  /// Lowering it does not take pages away: numbers at or above it are not given out again.
  void set_limit(std::int32_t limit) { limit_ = limit; }

  std::int32_t num_in_use() const { return num_in_use_; }
  std::int32_t num_idle() const { return num_idle_; }
  std::int32_t num_free() const;
  /// All numbers ever given out are below it: what the plan must have room for.
  std::int32_t high_water() const { return static_cast<std::int32_t>(pages_.size()); }

  /// A page with one reference, or nothing when none is free.
  std::optional<std::int32_t> allocate();
  /// One reference more, for a page in use or kept.
  void share(std::int32_t page);
  /// One reference less; without any, a page that is not kept is free.
  void release(std::int32_t page);
  std::int32_t references(std::int32_t page) const;

  /// The prefix index holds the page as well, until it lets go of it.
  void keep(std::int32_t page);
  void let_go(std::int32_t page);
  bool is_idle(std::int32_t page) const;

 private:
  struct Page {
    std::int32_t references = 0;
    bool kept = false;
  };
  Page& held(std::int32_t page);
  void count(const Page& page, std::int32_t sign);

  std::int32_t limit_;
  std::int32_t num_in_use_ = 0;
  std::int32_t num_idle_ = 0;
  std::vector<Page> pages_;
  std::priority_queue<std::int32_t, std::vector<std::int32_t>, std::greater<>> free_;  // of numbers given out before
};

/// The pages of the layers that see the same: all positions (window 0), the last `window`, or a state (kStateWindow).
struct KvPool {
  std::int32_t window = 0;
  KvPages pages;
};

}  // namespace sterna
