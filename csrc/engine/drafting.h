/// Drafts for the requests of an engine: where guesses come from, and how many of them pay.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "engine/draft_model.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "engine/speculation.h"
#include "plan/plan.h"

namespace sterna {

/// What is known about the guesses for one request.
struct DraftState {
  PromptLookup lookup;
  DraftSequence model;
  Acceptance acceptance;
  DraftSource source = DraftSource::kShortMatch;  // of the draft that the request's sequence has
  bool asked_model = false;
};

/// A request that decodes, and may have a draft.
struct DraftJob {
  Sequence* sequence;  // its draft is what is asked for
  DraftState* state;
  const GenerateRequest* request;
  std::span<const std::int32_t> history;  // all tokens, those too that the sequence forgot
  std::size_t num_prompt;
  std::int64_t room;  // tokens that may follow the next one
};

/// A long match of what was said before comes first, as it costs nothing, unless the draft model was right more often;
/// then the draft model, if there is one, then a short match. All numbers of tokens are chosen for the most tokens per
/// second, by what steps of the two models took and by how many guesses came true. Not thread-safe.
class Drafter {
 public:
  /// `draft_plan` may be null, and so may `clock`: the machine's. Throws ArgumentError when it is the target, or its
  /// vocabulary has another size.
  Drafter(const Plan& target, std::shared_ptr<Plan> draft_plan, std::int64_t kv_tokens, std::int32_t max_sequences,
          StepClock clock);

  /// What runs of both models are measured by.
  double seconds_now() const { return clock_(); }

  bool has_model() const { return model_.has_value(); }

  /// Gives each job's sequence its draft, or none. The next batch has a row for each of `rows` decoding sequences
  /// without them.
  void draft(std::span<const DraftJob> jobs, std::int32_t rows, const Interrupt& interrupt);
  /// Of the request's draft `drafted` tokens were checked, the first `accepted` of them were right.
  void learn(DraftState& state, std::int32_t drafted, std::int32_t accepted);
  /// A batch of decode rows alone took so long.
  void measured(std::int32_t rows, double seconds);
  /// The request has ended with these tokens, or waits for room.
  void release(DraftState& state, std::span<const std::int32_t> tokens);

  std::shared_ptr<Plan> take_plan() { return model_ ? model_->take_plan() : nullptr; }

 private:
  struct Open {
    const DraftJob* job;
    PromptLookup::Found found;
  };
  struct Candidate {
    const DraftJob* job;
    double probability;
    std::int32_t pending;  // rows that the draft model lacks
    std::int32_t most;
  };
  /// The first `count` candidates, with up to `depth` tokens each.
  struct Choice {
    std::size_t count = 0;
    std::int32_t depth = 0;
    double seconds_per_token = 0.0;
  };

  bool prefers_model(const DraftJob& job, DraftSource match) const;
  void take_match(const DraftJob& job, const PromptLookup::Found& found);
  void ask_model(std::span<const Open> open, const Interrupt& interrupt);
  void choose(std::vector<Candidate>& candidates, std::vector<DraftWanted>& wanted);
  Choice best_choice(std::span<const Candidate> candidates, const StepCosts* steps) const;
  void probe(std::span<const Candidate> candidates, std::vector<DraftWanted>& wanted);
  double model_seconds(const StepCosts* steps, std::int32_t rows) const;
  double catch_up_seconds(std::int32_t pending) const;

  const std::int32_t max_rows_;
  const StepClock clock_;
  std::optional<DraftModel> model_;
  double model_share_ = 0.0;        // of the target's time that a step of the model takes, as its size lets expect
  double model_probability_ = 0.7;  // of a guess of its, over all requests
  double probe_seconds_ = 0.0;      // saved up for drafts that are not expected to pay
  StepCosts costs_;
  StepCosts model_costs_;

  // Of the batch in the making, as decided so far.
  std::int32_t rows_ = 0;
  double tokens_ = 0.0;  // that it is expected to bring
};

}  // namespace sterna
