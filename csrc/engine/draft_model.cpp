#include "engine/draft_model.h"

#include <algorithm>

#include "base/error.h"

namespace sterna {
namespace {

bool contains(std::span<const std::int32_t> tokens, std::int32_t token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

SamplingContext sampling_context(const DraftWanted& wanted, std::span<const std::int32_t> history) {
  SamplingContext context;
  context.history = history;
  context.num_prompt = wanted.num_prompt;
  context.choice = wanted.request->choice;
  return context;
}

}  // namespace

DraftModel::DraftModel(std::shared_ptr<Plan> plan, std::int64_t kv_tokens, std::int32_t max_sequences)
    : plan_(std::move(plan)),
      max_tokens_(plan_->max_tokens()),
      max_outputs_(plan_->max_outputs()),
      cache_(pool_windows(*plan_), pool_page_limits(*plan_, kv_tokens, max_sequences)),
      sampler_(plan_->vocab_size()),
      largest_(*plan_) {}

std::int32_t DraftModel::num_pending(const DraftSequence& sequence, std::span<const std::int32_t> tokens) const {
  const auto num_tokens = static_cast<std::int32_t>(tokens.size());
  std::int32_t computed = std::min(sequence.num_computed, common_prefix(sequence.tokens, tokens));
  if (sequence.num_computed == 0) {
    computed = static_cast<std::int32_t>(cache_.index().chain(sequence.context_key, tokens).size()) * kPageSlots;
  }
  return num_tokens - std::min(computed, num_tokens - 1);
}

/// The sequence has exactly these tokens, and counts as computed what it has computed of them.
void DraftModel::follow(DraftSequence& sequence, std::span<const std::int32_t> tokens) {
  const std::int32_t same = common_prefix(sequence.tokens, tokens);
  const std::int32_t computed = std::min({sequence.num_computed, same, static_cast<std::int32_t>(tokens.size()) - 1});
  if (computed < sequence.num_indexed * kPageSlots) {
    cache_.drop(sequence);  // the request forgot its middle
  } else {
    sequence.num_computed = computed;
  }
  sequence.tokens.resize(static_cast<std::size_t>(same));
  sequence.tokens.insert(sequence.tokens.end(), tokens.begin() + same, tokens.end());
  sequence.output_from = sequence.num_tokens() - 1;
  cache_.release_unused(sequence);
  cache_.advance(sequence);
}

/// The same, and takes from the cache what is there.
void DraftModel::catch_up(DraftSequence& sequence, std::span<const std::int32_t> tokens) {
  follow(sequence, tokens);
  cache_.reuse_pages(sequence);
  std::vector<PageCopy> copies;
  if (!cache_.copy_beginning(sequence, copies)) return;
  if (!reserve()) return cache_.forget_beginning(sequence);
  for (const PageCopy& copy : copies) plan_->copy_page(copy.pool, copy.from, copy.to);
}

/// Room in the plan for all pages that were given out.
bool DraftModel::reserve() {
  for (std::size_t pool = 0; pool < cache_.num_pools(); ++pool) {
    KvPages& pages = cache_.pages(pool);
    const std::int32_t needed = std::min(pages.high_water(), pages.limit());
    if (plan_->num_pages(pool) >= needed) continue;
    try {
      plan_->reserve_pages(pool, needed);
    } catch (...) {  // whatever it is: no more pages than there are
      pages.set_limit(std::min(pages.limit(), plan_->num_pages(pool)));
      return false;
    }
  }
  return true;
}

bool DraftModel::grow(DraftSequence& sequence, std::int32_t positions) {
  // Once more where there was no memory: then the limit is known, and pages that nobody uses make room.
  for (int attempt = 0; attempt < 2; ++attempt) {
    const bool found = cache_.grow(sequence, positions) >= positions;
    if (found && reserve()) return true;
    cache_.release_unused(sequence);
    if (!found) break;
  }
  return false;
}

void DraftModel::fail(DraftSequence& sequence) {
  sequence.failed = true;
  cache_.drop(sequence);
  sequence.tokens.clear();
}

/// Who lacks least comes first; who lacks more than fits gets a part of it.
void DraftModel::plan_first_run(std::span<const DraftWanted> wanted) {
  rows_.clear();
  std::int32_t tokens_left = max_tokens_, outputs_left = max_outputs_;
  std::vector<const DraftWanted*> line;
  for (const DraftWanted& w : wanted) {
    if (w.sequence->failed || w.most < 1) continue;
    try {
      catch_up(*w.sequence, w.tokens);
    } catch (...) {
      fail(*w.sequence);
      continue;
    }
    line.push_back(&w);
  }
  std::stable_sort(line.begin(), line.end(), [](const DraftWanted* a, const DraftWanted* b) {
    return a->sequence->num_pending() < b->sequence->num_pending();
  });
  for (const DraftWanted* w : line) {
    DraftSequence& sequence = *w->sequence;
    std::int32_t count = std::min(sequence.num_pending(), tokens_left);
    if (outputs_left == 0) count = std::min(count, sequence.num_pending() - 1);
    if (count == 0) continue;
    // Where others hold the pages there is nothing to start with; who loses them on the way would only lose them again.
    if (!cache_.has_pages(sequence) && !cache_.has_room(sequence, sequence.num_tokens() + w->most)) continue;
    const bool guesses = count == sequence.num_pending();
    if (!grow(sequence, sequence.num_computed + count)) {
      fail(sequence);
      continue;
    }
    rows_.push_back({w, count, guesses});
    tokens_left -= count;
    outputs_left -= guesses ? 1 : 0;
  }
}

/// Computes the next `count` tokens of each sequence; false when it was interrupted.
bool DraftModel::run(const Interrupt& interrupt) {
  tokens_.clear();
  positions_.clear();
  sequences_.clear();
  page_tables_.clear();
  output_rows_.clear();
  largest_.clear();
  for (const Row& row : rows_) {
    const DraftSequence& sequence = *row.wanted->sequence;
    for (std::int32_t i = 0; i < row.count; ++i) {
      const std::int32_t position = sequence.num_computed + i;
      tokens_.push_back(sequence.tokens[static_cast<std::size_t>(position)]);
      positions_.push_back(position);
      sequences_.push_back(static_cast<std::int32_t>(&row - rows_.data()));
    }
    if (row.guesses) {
      output_rows_.push_back(static_cast<std::int32_t>(tokens_.size()) - 1);
      largest_.add(row.wanted->request->sampling, sampling_context(*row.wanted, row.wanted->history),
                   static_cast<std::int32_t>(row.wanted->draft->size()));
    }
    for (const auto& table : sequence.pages) page_tables_.emplace_back(table);
  }
  Batch batch{tokens_, positions_, sequences_, page_tables_, output_rows_};
  batch.num_pools = cache_.num_pools();
  batch.largest = largest_.counts();
  if (!plan_->run(batch, &interrupt)) return false;
  for (const Row& row : rows_) row.wanted->sequence->num_computed += row.count;
  return true;
}

/// A token after the last row of each sequence; those that go on stay in `rows_`, with that token to compute.
void DraftModel::guess() {
  std::size_t output = 0;
  std::vector<Row> next;
  for (const Row& row : rows_) {
    if (!row.guesses) continue;
    const DraftWanted& wanted = *row.wanted;
    DraftSequence& sequence = *wanted.sequence;
    std::vector<std::int32_t>& draft = *wanted.draft;
    text_.assign(wanted.history.begin(), wanted.history.end());
    text_.insert(text_.end(), draft.begin(), draft.end());
    std::int32_t token = 0;
    try {
      token =
          sample_output(sampler_, *plan_, output++, wanted.request->sampling, sampling_context(wanted, text_)).token;
    } catch (const Error&) {
      fail(sequence);
      continue;
    }
    if (contains(wanted.request->stop_ids, token)) continue;  // nothing comes after it
    draft.push_back(token);
    if (static_cast<std::int32_t>(draft.size()) == wanted.most) continue;
    sequence.tokens.push_back(token);
    if (grow(sequence, sequence.num_tokens())) next.push_back({&wanted, 1, true});
  }
  rows_ = std::move(next);
}

void DraftModel::draft(std::span<const DraftWanted> wanted, const Interrupt& interrupt, StepCosts& costs,
                       const StepClock& clock) {
  if (interrupt.due()) return;
  plan_first_run(wanted);
  try {
    while (!rows_.empty()) {
      const double begin = clock();
      if (!run(interrupt)) {
        for (const DraftWanted& w : wanted) w.draft->clear();
        return;
      }
      const auto num_rows = static_cast<std::int32_t>(tokens_.size());
      guess();
      costs.measured(num_rows, clock() - begin);
    }
  } catch (...) {
    for (const Row& row : rows_) {
      fail(*row.wanted->sequence);
      row.wanted->draft->clear();
    }
  }
}

void DraftModel::release(DraftSequence& sequence, std::span<const std::int32_t> tokens) {
  if (!sequence.node) return;
  if (sequence.failed || tokens.empty()) return cache_.drop(sequence);
  follow(sequence, tokens);
  cache_.retire(sequence);
}

}  // namespace sterna
