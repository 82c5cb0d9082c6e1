/// A model that is a hash: logits depend on every visible token, read back through the page tables. For tests of the
/// engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "plan/plan.h"

namespace sterna::testing {

inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline std::uint64_t slot_hash(std::int32_t token, std::int32_t position) {
  return mix(mix(static_cast<std::uint64_t>(token)) ^ static_cast<std::uint64_t>(position));
}

/// `sum` of the visible slots' hashes, `count` of them.
inline void hash_logits(std::uint64_t sum, std::int32_t count, std::span<float> logits) {
  const std::uint64_t state = mix(sum + static_cast<std::uint64_t>(count));
  for (std::size_t t = 0; t < logits.size(); ++t) {
    logits[t] = static_cast<float>(mix(state ^ t) >> 40) * 0x1p-21f - 4.0f;
  }
}

class FakePlan final : public Plan {
 public:
  FakePlan(std::int32_t vocab_size, std::int32_t max_tokens, std::int32_t max_outputs)
      : vocab_size_(vocab_size), max_tokens_(max_tokens), max_outputs_(max_outputs) {}

  /// The row of this token fails the whole batch.
  static constexpr std::int32_t kPoison = 3;

  bool run(const Batch& batch, const Interrupt* interrupt) override {
    // Not reentrant: plain members, so that a sanitizer sees a second thread.
    ++num_runs_;
    if (batch.num_tokens() < 1 || batch.num_tokens() > max_tokens_ || batch.num_outputs() > max_outputs_) {
      throw ArgumentError("the batch is too large");
    }
    for (std::size_t i = 0; i < batch.tokens.size(); ++i) {
      if (interrupt->due()) return false;
      if (batch.tokens[i] == kPoison) throw DeviceError("poison");
      slot(batch, i, batch.positions[i]) = slot_hash(batch.tokens[i], batch.positions[i]);
    }
    const auto width = static_cast<std::size_t>(vocab_size_);
    logits_.resize(batch.output_rows.size() * width);
    for (std::size_t l = 0; l < batch.output_rows.size(); ++l) {
      const auto row = static_cast<std::size_t>(batch.output_rows[l]);
      std::uint64_t sum = 0;
      for (std::int32_t p = 0; p <= batch.positions[row]; ++p) sum += slot(batch, row, p);
      hash_logits(sum, batch.positions[row] + 1, std::span(logits_).subspan(l * width, width));
    }
    return true;
  }

  std::span<const float> logits() const override { return logits_; }
  std::string first_non_finite(const Batch&, std::int32_t) override { return {}; }
  std::span<const KvPoolInfo> kv_pools() const override { return pools_; }
  void reserve_pages(std::size_t, std::int32_t num_pages) override {
    cache_.resize(static_cast<std::size_t>(num_pages) * kPageSlots, 0xDEADBEEF);
  }
  std::int32_t num_pages(std::size_t) const override { return static_cast<std::int32_t>(cache_.size()) / kPageSlots; }
  void copy_page(std::size_t, std::int32_t from, std::int32_t to) override {
    std::copy_n(cache_.begin() + std::ptrdiff_t{from} * kPageSlots, kPageSlots,
                cache_.begin() + std::ptrdiff_t{to} * kPageSlots);
  }
  void read_page(std::size_t, std::int32_t page, std::span<std::uint8_t> bytes) const override {
    std::memcpy(bytes.data(), cache_.data() + std::ptrdiff_t{page} * kPageSlots, bytes.size());
  }
  void write_page(std::size_t, std::int32_t page, std::span<const std::uint8_t> bytes) override {
    std::memcpy(cache_.data() + std::ptrdiff_t{page} * kPageSlots, bytes.data(), bytes.size());
  }
  std::string kv_layout() const override { return "fake"; }
  std::int32_t vocab_size() const override { return vocab_size_; }
  std::int32_t max_tokens() const override { return max_tokens_; }
  std::int32_t max_outputs() const override { return max_outputs_; }
  PlanMemory memory() const override { return {}; }

 private:
  std::uint64_t& slot(const Batch& batch, std::size_t row, std::int32_t position) {
    const auto table = batch.table(batch.sequences[row], 0);
    const std::int32_t page = table[static_cast<std::size_t>(position / kPageSlots)];
    return cache_.at(static_cast<std::size_t>(page) * kPageSlots + static_cast<std::size_t>(position % kPageSlots));
  }

  std::int32_t vocab_size_;
  std::int32_t max_tokens_;
  std::int32_t max_outputs_;
  std::uint64_t num_runs_ = 0;
  std::vector<KvPoolInfo> pools_{{0, kPageSlots * sizeof(std::uint64_t)}};
  std::vector<std::uint64_t> cache_;
  std::vector<float> logits_;
};

}  // namespace sterna::testing
