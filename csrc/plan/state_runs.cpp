#include "plan/state_runs.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace sterna {
namespace {

/// The half that holds the state after so many tokens, or -1.
int half_of(const StatePages& pages, std::int32_t page, std::int64_t num_tokens) {
  const StatePages::StateHeader& header = pages.state_header(page);
  if (header.num_tokens[0] == num_tokens) return 0;
  return header.num_tokens[1] == num_tokens ? 1 : -1;
}

/// Calls fn(first row, last row, table) for each sequence of the batch.
template <class Fn>
void each_sequence(const Batch& batch, std::size_t pool, Fn fn) {
  const std::size_t rows = batch.sequences.size();
  for (std::size_t first = 0, last = 0; first < rows; first = last) {
    while (last < rows && batch.sequences[last] == batch.sequences[first]) ++last;
    fn(first, last, batch.table(batch.sequences[first], pool));
  }
}

}  // namespace

void StateRuns::check(const Batch& batch, std::size_t pool, const StatePages& pages) {
  each_sequence(batch, pool, [&](std::size_t first, std::size_t last, auto table) {
    const std::int64_t position = batch.positions[first];
    if (batch.positions[last - 1] - position != static_cast<std::int64_t>(last - first) - 1) {
      throw ArgumentError("batch: a recurrent layer computes positions one after the other, not " +
                          std::to_string(position) + " to " + std::to_string(batch.positions[last - 1]) + " in " +
                          std::to_string(last - first) + " rows");
    }
    if (position == 0) return;
    const std::int32_t page = table[static_cast<std::size_t>((position - 1) / kPageSlots)];
    if (half_of(pages, page, position) < 0) {
      throw ArgumentError("batch: page " + std::to_string(page) + " does not hold the state after " +
                          std::to_string(position) + " tokens");
    }
  });
}

void StateRuns::begin(const Batch& batch, std::size_t pool, const StatePages& pages) {
  segments_.clear();
  firsts_.assign(1, 0);
  sequences_.clear();
  tags_.clear();
  each_sequence(batch, pool, [&](std::size_t first, std::size_t last, auto table) {
    sequences_.resize(last, num_sequences());
    const std::int64_t begin = batch.positions[first];
    const std::int64_t end = begin + static_cast<std::int64_t>(last - first);
    std::int32_t read_page = kNoPage;
    int read_half = 0;
    const float* source = nullptr;
    if (begin > 0) {
      read_page = table[static_cast<std::size_t>((begin - 1) / kPageSlots)];
      read_half = half_of(pages, read_page, begin);
      source = pages.state_half(read_page, read_half);
    }
    auto row = static_cast<std::int64_t>(first);
    for (std::int64_t i = begin / kPageSlots; i <= (end - 1) / kPageSlots; ++i) {
      const std::int32_t page = table[static_cast<std::size_t>(i)];
      if (page == kNoPage) continue;
      const std::int64_t stop = std::min(end, (i + 1) * kPageSlots);
      // The state that was read stays, whatever becomes of this run.
      const int half = page == read_page ? 1 - read_half : 0;
      StatePages::StateHeader& header = pages.state_header(page);
      header.num_tokens[half] = 0;
      if (page != read_page) header.num_tokens[1 - half] = 0;
      float* target = pages.state_half(page, half);
      const std::int64_t next = static_cast<std::int64_t>(first) + stop - begin;
      segments_.push_back({row, next, source, target});
      tags_.push_back({page, half, stop});
      row = next;
      source = target;
    }
    firsts_.push_back(static_cast<std::int64_t>(segments_.size()));
  });
}

void StateRuns::finish(const StatePages& pages) {
  for (const Tag& tag : tags_) pages.state_header(tag.page).num_tokens[tag.half] = tag.num_tokens;
}

}  // namespace sterna
