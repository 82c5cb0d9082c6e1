/// A Program compiled for one device: fused steps over packed weights and one planned arena. Running it involves no
/// Python.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/batch.h"

namespace sterna {

/// How keys and values are rounded in the cache.
enum class KvType { kF16, kF32, kQ8_0 };

/// Elements of a head's key or value row that share a scale in a q8_0 cache.
constexpr int kKvGroup = 32;

/// Bytes that a plan holds.
struct PlanMemory {
  std::uint64_t weights = 0;  // packed
  std::uint64_t scratch = 0;  // arena and per-thread buffers
  std::uint64_t kv_page = 0;  // one page over all layers
};

class Plan {
 public:
  virtual ~Plan() = default;

  /// Computes the batch and writes K and V of its rows; logits() then has batch.num_outputs() rows. Returns false, with
  /// the logits undefined, when `cancelled` was seen set between two steps; running the batch again later is safe.
  /// Limits: 1 <= T <= max_tokens(), L <= max_outputs(), pages < num_pages(). Not reentrant.
  virtual bool run(const Batch& batch, const std::atomic<bool>* cancelled = nullptr) = 0;

  /// [num_outputs, vocab_size] of the last run; valid until the next.
  virtual std::span<const float> logits() const = 0;

  /// Makes room for at least `num_pages` KV pages (slabs; existing pages keep their contents). Throws
  /// MemoryBudgetError.
  virtual void reserve_pages(std::int32_t num_pages) = 0;
  virtual std::int32_t num_pages() const = 0;

  virtual std::int32_t vocab_size() const = 0;
  virtual std::int32_t max_tokens() const = 0;
  virtual std::int32_t max_outputs() const = 0;
  virtual PlanMemory memory() const = 0;
};

}  // namespace sterna
