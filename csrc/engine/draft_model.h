/// A small model that guesses what a large one will say: its plan, its own KV cache, and a sequence per request.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/output_sampling.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "engine/speculation.h"
#include "plan/plan.h"

namespace sterna {

/// What the draft model has computed of one request. Its pages in the index hold tokens that the request has; those of
/// guesses are never in it. It has no context key: adapters and the like shape the large model's K and V only.
struct DraftSequence : Sequence {
  bool failed = false;  // the model cannot guess for this request any more
};

/// What a guess starts from, and where it goes.
struct DraftWanted {
  DraftSequence* sequence;
  std::span<const std::int32_t> tokens;   // at their positions, as the large model computes them
  std::span<const std::int32_t> history;  // as its sampler sees them
  std::size_t num_prompt;
  const GenerateRequest* request;
  std::int32_t most;                 // tokens
  std::vector<std::int32_t>* draft;  // empty before
};

/// Chooses each next token as the request itself would, with its sampling and the random number of that position, but
/// from the small model's logits and without its mask: so sampled text is guessed well, too. Not thread-safe.
class DraftModel {
 public:
  /// The cache holds `kv_tokens` positions of all sequences together.
  DraftModel(std::shared_ptr<Plan> plan, std::int64_t kv_tokens, std::int32_t max_sequences);

  /// Rows to compute before the first guess about `tokens`.
  std::int32_t num_pending(const DraftSequence& sequence, std::span<const std::int32_t> tokens) const;

  /// Guesses for all of them together. One run computes what the sequences lack, in so far as it fits; who lacks more
  /// goes on in the next call, and gets no draft before. Then as many runs of a row each as the longest draft needs.
  /// No draft either where there is no page, where the plan or the sampler fails (`failed`), and for nobody once the
  /// interrupt is due. Never throws what the plan throws.
  void draft(std::span<const DraftWanted> wanted, const Interrupt& interrupt, StepCosts& costs, const StepClock& clock);

  /// The sequence gives its pages back; these tokens stay in the cache as far as they are computed, and their room
  /// lasts.
  void release(DraftSequence& sequence, std::span<const std::int32_t> tokens);

  /// So that it can be freed, or left alone, with the engine's own.
  std::shared_ptr<Plan> take_plan() { return std::move(plan_); }

 private:
  struct Row {
    const DraftWanted* wanted;
    std::int32_t count;  // the last tokens of the sequence that are computed now
    bool guesses;        // the last of them is followed by a guess
  };

  void follow(DraftSequence& sequence, std::span<const std::int32_t> tokens);
  void catch_up(DraftSequence& sequence, std::span<const std::int32_t> tokens);
  bool reserve();
  bool grow(DraftSequence& sequence, std::int32_t positions);
  void fail(DraftSequence& sequence);
  void plan_first_run(std::span<const DraftWanted> wanted);
  bool run(const Interrupt& interrupt);
  void guess();

  std::shared_ptr<Plan> plan_;
  const std::int32_t max_tokens_;
  const std::int32_t max_outputs_;
  KvCache cache_;
  Sampler sampler_;

  // Of the run in progress.
  std::vector<Row> rows_;
  std::vector<std::int32_t> tokens_;
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> sequences_;
  std::vector<std::span<const std::int32_t>> page_tables_;
  std::vector<std::int32_t> output_rows_;
  LargestWanted largest_;
  std::vector<std::int32_t> text_;  // history and draft
};

}  // namespace sterna
