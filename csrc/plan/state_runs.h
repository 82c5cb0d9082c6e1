/// Where the recurrent layers of one run find the state of each sequence, and where they leave it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/batch.h"

namespace sterna {

/// The pages of states that a backend holds.
class StatePages {
 public:
  /// After how many tokens each of a page's halves is the state; 0: it is none. A run reads one half and writes the
  /// other, so that it can be run again.
  struct StateHeader {
    std::int64_t num_tokens[2];
  };

  virtual ~StatePages() = default;
  virtual StateHeader& state_header(std::int32_t page) const = 0;
  virtual float* state_half(std::int32_t page, int half) const = 0;
};

/// Rows [first_row, last_row) of a sequence that begin with one kept state and end with the next.
struct StateSegment {
  std::int64_t first_row;
  std::int64_t last_row;
  const float* source;  // the half of a page that holds the state before them; null: there is none, it is zero
  float* target;        // another one, for the state after them
};

/// The segments of a batch. All layers read and write the same halves. Not thread-safe; steps read it.
class StateRuns {
 public:
  /// Whether each sequence of the batch finds its state. Throws ArgumentError.
  static void check(const Batch& batch, std::size_t pool, const StatePages& pages);

  /// Lays out the batch, which was checked. What will be written counts as no state until `finish`.
  void begin(const Batch& batch, std::size_t pool, const StatePages& pages);
  /// The run is complete: what it wrote counts.
  void finish(const StatePages& pages);

  std::span<const StateSegment> segments() const { return segments_; }
  /// [sequences + 1]: where the segments of each begin.
  std::span<const std::int64_t> segment_starts() const { return firsts_; }
  std::int64_t num_sequences() const { return static_cast<std::int64_t>(firsts_.size()) - 1; }
  /// Those of the row's sequence.
  std::span<const StateSegment> of_row(std::int64_t row) const {
    return of_sequence(sequences_[static_cast<std::size_t>(row)]);
  }
  /// Those of one sequence, in order; each begins where the one before ends.
  std::span<const StateSegment> of_sequence(std::int64_t index) const {
    const auto first = static_cast<std::size_t>(firsts_[static_cast<std::size_t>(index)]);
    const auto last = static_cast<std::size_t>(firsts_[static_cast<std::size_t>(index) + 1]);
    return std::span(segments_).subspan(first, last - first);
  }

 private:
  struct Tag {
    std::int32_t page;
    int half;
    std::int64_t num_tokens;
  };

  std::vector<StateSegment> segments_;
  std::vector<std::int64_t> firsts_;     // by sequence, and the end
  std::vector<std::int64_t> sequences_;  // by row
  std::vector<Tag> tags_;                // by segment, of its target
};

}  // namespace sterna
