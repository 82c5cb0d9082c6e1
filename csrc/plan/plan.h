/// A Program compiled for one device: fused steps over packed weights and one planned arena. Running it involves no
/// Python.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/batch.h"
#include "plan/kinds.h"
#include "plan/token_logit.h"

namespace sterna {

/// Whose positions the pages of a pool hold.
enum class KvPoolKind {
  kSequence,   // those of the sequence: its rows write them and see those before
  kTemporary,  // of a sequence that is encoded, while its batch runs: layers that see later positions too write them
               // one after the other
  kCross,      // of the sequence that was encoded for this one, which reads them
};

/// Pools of a plan: a word has a bit for each.
constexpr std::size_t kMaxPools = 64;

/// Layers whose pages live and die together: those that see all positions (window 0), the last `window`, or a state
/// (kStateWindow).
struct KvPoolInfo {
  std::int32_t window = 0;
  std::uint64_t page_bytes = 0;  // one page over these layers; of a temporary pool, the largest of them
  KvPoolKind kind = KvPoolKind::kSequence;
};

/// What a plan's function "encode" gives.
struct EncodingInfo {
  std::int32_t size = 0;  // floats of a vector; 0: there is no such function
  bool keeps = false;     // it writes pages of cross pools, which "logits" needs
  bool whole = false;     // a sequence must be computed in one batch; otherwise in any chunks, as for logits
};

/// Bytes that a plan holds.
struct PlanMemory {
  std::uint64_t weights = 0;  // packed
  std::uint64_t scratch = 0;  // arena and per-thread buffers
  std::vector<KvPoolInfo> kv_pools;
};

/// Asks a run to stop between two steps: when somebody asks, or at a point in time.
struct Interrupt {
  using Clock = std::chrono::steady_clock;
  std::atomic<bool> asked = false;
  Clock::time_point deadline = Clock::time_point::max();

  bool due() const {
    return asked.load(std::memory_order_relaxed) || (deadline != Clock::time_point::max() && Clock::now() >= deadline);
  }
};

class Plan {
 public:
  virtual ~Plan() = default;

  /// Computes the batch and writes K and V of its rows; logits() then has batch.num_outputs() rows. Returns false, with
  /// the logits undefined, when `interrupt` was seen due between two steps; running the batch again later is safe.
  /// Limits: 1 <= T <= max_tokens(), L <= max_outputs(), pages < num_pages(). Not reentrant.
  virtual bool run(const Batch& batch, const Interrupt* interrupt = nullptr) = 0;

  /// [num_outputs, vocab_size] of the last run; valid until the next. Not all there where the batch asked for the
  /// largest.
  virtual std::span<const float> logits() const = 0;
  /// [vocab_size]: a row of them, whatever the batch asked for.
  virtual std::span<const float> logits_row(std::size_t output) {
    const auto width = static_cast<std::size_t>(vocab_size());
    return logits().subspan(output * width, width);
  }
  /// As many of a row's largest logits as the plan can find itself, where bringing all of them here is dear; 0: none.
  virtual std::int32_t most_largest() const { return 0; }
  /// At least as many of the row's as the batch asked for, or all, by falling logit and, where these are equal, rising
  /// token. Empty where it asked for none, or one of the row's logits is not finite.
  virtual std::span<const TokenLogit> largest_logits(std::size_t /*output*/) const { return {}; }
  /// [num_outputs, encoding().size] of the last run, if it was one of "encode".
  virtual std::span<const float> encodings() const { return {}; }

  /// Numbers in a row of a value of the function "logits"; 0 where there is no such value. Any thread may ask.
  virtual std::int32_t value_size(std::string_view) const { return 0; }
  /// A row of a value that the last run kept: that of the batch's row, or where only rows whose logits are wanted were
  /// computed, of the output.
  virtual std::span<const float> kept_row(std::string_view, std::int32_t /*row*/, std::size_t /*output*/) const {
    return {};
  }

  /// Runs the batch again, which must have been the last one, and names the first value of row `row` that is not
  /// finite, with its line in the model file; empty when there is none, or the plan cannot tell.
  virtual std::string first_non_finite(const Batch& batch, std::int32_t row) = 0;

  /// One entry per pool of KV pages; a batch has a page table for each.
  virtual std::span<const KvPoolInfo> kv_pools() const = 0;
  /// Makes room for at least `num_pages` KV pages (slabs; existing pages keep their contents). Throws
  /// MemoryBudgetError.
  virtual void reserve_pages(std::size_t pool, std::int32_t num_pages) = 0;
  virtual std::int32_t num_pages(std::size_t pool) const = 0;
  virtual void copy_page(std::size_t pool, std::int32_t from, std::int32_t to) = 0;
  /// page_bytes of the pool each. What they mean is told by kv_layout(): equal names, equal meanings.
  virtual void read_page(std::size_t pool, std::int32_t page, std::span<std::uint8_t> bytes) const = 0;
  virtual void write_page(std::size_t pool, std::int32_t page, std::span<const std::uint8_t> bytes) = 0;
  virtual std::string kv_layout() const = 0;

  /// Sequences longer than this are long ones (Batch::long_sequences); 0: there are none.
  virtual std::int32_t longrope_context() const { return 0; }

  virtual std::int32_t vocab_size() const = 0;
  /// Of an input row that is no token: see SequenceContext::embeddings. 0: the plan takes none.
  virtual std::int32_t hidden_size() const { return 0; }
  virtual std::int32_t num_adapters() const { return 0; }
  /// Whether there is a function "logits".
  virtual bool has_logits() const { return true; }
  virtual EncodingInfo encoding() const { return {}; }
  virtual std::int32_t max_tokens() const = 0;
  virtual std::int32_t max_outputs() const = 0;
  virtual PlanMemory memory() const = 0;
};

}  // namespace sterna
