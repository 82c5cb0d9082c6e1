/// Finds entries by name, also among names that an attacker chose: no input makes it slower than sorting.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

namespace sterna {

/// Sorted (hash, entry) pairs. The hash only saves comparisons: entries of equal hash are sorted by name, so that
/// collisions cost O(log n) and never O(n). `name_of(entry)` gives an entry's name; the index holds none itself.
class NameIndex {
 public:
  /// Indexes entries 0 .. count-1; returns the later one of two that share a name, if there are such.
  template <class NameOf>
  std::optional<std::uint32_t> build(std::uint32_t count, NameOf name_of) {
    slots_.clear();
    slots_.reserve(count);
    for (std::uint32_t i = 0; i < count; ++i) slots_.push_back({hash(name_of(i)), i});
    std::sort(slots_.begin(), slots_.end(), [&](const Slot& a, const Slot& b) {
      if (a.hash != b.hash) return a.hash < b.hash;
      const int order = name_of(a.entry).compare(name_of(b.entry));
      return order != 0 ? order < 0 : a.entry < b.entry;
    });
    std::optional<std::uint32_t> duplicate;
    for (std::size_t i = 1; i < slots_.size(); ++i) {
      if (slots_[i].hash != slots_[i - 1].hash || name_of(slots_[i].entry) != name_of(slots_[i - 1].entry)) continue;
      if (!duplicate || slots_[i].entry < *duplicate) duplicate = slots_[i].entry;
    }
    return duplicate;
  }

  template <class NameOf>
  std::optional<std::uint32_t> find(std::string_view name, NameOf name_of) const {
    const std::uint64_t wanted = hash(name);
    const auto at = std::lower_bound(slots_.begin(), slots_.end(), wanted, [&](const Slot& slot, std::uint64_t h) {
      return slot.hash != h ? slot.hash < h : name_of(slot.entry).compare(name) < 0;
    });
    if (at == slots_.end() || at->hash != wanted || name_of(at->entry) != name) return std::nullopt;
    return at->entry;
  }

 private:
  struct Slot {
    std::uint64_t hash;
    std::uint32_t entry;
  };

  /// FNV-1a, 64 bits.
  static std::uint64_t hash(std::string_view name) {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const char c : name) h = (h ^ static_cast<std::uint8_t>(c)) * 0x100000001b3u;
    return h;
  }

  std::vector<Slot> slots_;
};

}  // namespace sterna
