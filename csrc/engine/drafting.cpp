#include "engine/drafting.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#include "base/error.h"

namespace sterna {
namespace {

/// Tokens that the draft model says in a row.
constexpr std::int32_t kMaxDepth = 16;
/// Rows that the model lacks in any case after a draft of its that was right, or nearly; more are a cost to get back.
constexpr std::int32_t kUsualPending = 4;
/// Nobody knows how long a text becomes: so many tokens must pay for what it takes to begin.
constexpr std::int64_t kExpectedTokens = 256;
/// Of the time, for drafts that are not expected to pay: so that a change is seen.
constexpr double kProbeShare = 0.005;
/// What a text that is easy to guess would have.
constexpr double kBestProbability = 0.95;
/// A draft model's time where neither its size nor its steps tell.
constexpr double kUsualShare = 0.1;
constexpr double kNewShare = 0.02;

DraftWanted wanted_of(const DraftJob& job, std::int32_t most) {
  return {&job.state->model,   job.sequence->tokens, job.history, job.num_prompt, job.request, most,
          &job.sequence->draft};
}

double machine_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Drafter::Drafter(const Plan& target, std::shared_ptr<Plan> draft_plan, std::int64_t kv_tokens,
                 std::int32_t max_sequences, StepClock clock)
    : max_rows_(std::min({StepCosts::kMaxRows, target.max_tokens(), target.max_outputs()})),
      clock_(clock ? std::move(clock) : StepClock(machine_seconds)) {
  if (!draft_plan) return;
  if (draft_plan.get() == &target) throw ArgumentError("the draft model needs a plan of its own");
  if (draft_plan->vocab_size() != target.vocab_size()) {
    throw ArgumentError("the draft model has a vocabulary of " + std::to_string(draft_plan->vocab_size()) +
                        ", the model one of " + std::to_string(target.vocab_size()));
  }
  const auto own = static_cast<double>(draft_plan->memory().weights);
  const auto all = static_cast<double>(target.memory().weights);
  model_share_ = own > 0 && all > 0 ? own / all : kUsualShare;
  model_.emplace(std::move(draft_plan), kv_tokens, max_sequences);
}

void Drafter::measured(std::int32_t rows, double seconds) {
  costs_.measured(rows, seconds);
  probe_seconds_ += kProbeShare * seconds;
}

void Drafter::learn(DraftState& state, std::int32_t drafted, std::int32_t accepted) {
  state.acceptance.learn(state.source, drafted, accepted);
  if (state.source != DraftSource::kModel) return;
  for (std::int32_t i = 0; i < std::min(drafted, accepted + 1); ++i) {
    model_probability_ += kNewShare * ((i < accepted ? 1.0 : 0.0) - model_probability_);
  }
}

void Drafter::release(DraftState& state, std::span<const std::int32_t> tokens) {
  if (model_) model_->release(state.model, tokens);
}

/// Whether the draft model is asked where there is such a match. It cannot read the large model's embeddings.
bool Drafter::prefers_model(const DraftJob& job, DraftSource match) const {
  if (!model_ || job.state->model.failed) return false;
  const SequenceContext* context = job.request->terms.context.get();
  if (context && !context->embeddings.empty()) return false;
  const Acceptance& acceptance = job.state->acceptance;
  return match != DraftSource::kLongMatch ||
         acceptance.probability(match) < acceptance.probability(DraftSource::kModel);
}

void Drafter::draft(std::span<const DraftJob> jobs, std::int32_t rows, const Interrupt& interrupt) {
  rows_ = rows;
  tokens_ = rows;
  std::vector<Open> open;
  for (const DraftJob& job : jobs) {
    if (job.request->draft_tokens == 0 || job.room <= 0) continue;
    const std::int64_t most = std::min<std::int64_t>(job.room, job.request->draft_tokens.value_or(max_rows_));
    const PromptLookup::Found found = job.state->lookup.find(job.history, static_cast<std::size_t>(most));
    if (prefers_model(job, source_of(found))) {
      open.push_back({&job, found});
    } else {
      take_match(job, found);
    }
  }
  if (open.empty()) return;
  ask_model(open, interrupt);
  for (const Open& o : open) {
    if (o.job->sequence->draft.empty()) take_match(*o.job, o.found);
  }
}

void Drafter::take_match(const DraftJob& job, const PromptLookup::Found& found) {
  auto count = static_cast<std::int32_t>(found.draft.size());
  if (count == 0) return;
  DraftState& state = *job.state;
  const DraftSource source = source_of(found);
  if (!job.request->draft_tokens) {
    const double probability = state.acceptance.probability(source);
    count = best_draft(costs_, rows_, tokens_, probability, std::min(count, max_rows_ - rows_));
    if (count == 0 && state.acceptance.should_probe()) count = 1;
    tokens_ += expected_accepted(probability, count);
  }
  rows_ += count;
  state.source = source;
  job.sequence->draft.assign(found.draft.begin(), found.draft.begin() + count);
}

void Drafter::ask_model(std::span<const Open> open, const Interrupt& interrupt) {
  std::vector<DraftWanted> wanted;
  std::vector<Candidate> candidates;
  for (const auto& [job, found] : open) {
    const auto most =
        static_cast<std::int32_t>(std::min<std::int64_t>(job->room, job->request->draft_tokens.value_or(kMaxDepth)));
    if (job->request->draft_tokens) {
      wanted.push_back(wanted_of(*job, std::clamp(max_rows_ - rows_, 1, most)));
      rows_ += wanted.back().most;
      continue;
    }
    if (!std::exchange(job->state->asked_model, true)) {
      job->state->acceptance.expect(DraftSource::kModel, model_probability_);
    }
    candidates.push_back({job, job->state->acceptance.probability(DraftSource::kModel),
                          model_->num_pending(job->state->model, job->sequence->tokens), most});
  }
  choose(candidates, wanted);
  if (wanted.empty()) return;
  model_->draft(wanted, interrupt, model_costs_, clock_);
  for (const DraftWanted& w : wanted) rows_ -= w.most - static_cast<std::int32_t>(w.draft->size());
  for (const auto& [job, found] : open) {
    if (!job->sequence->draft.empty()) job->state->source = DraftSource::kModel;
  }
}

/// Adds those for which the model's time pays: all of them run together, so it is one question.
void Drafter::choose(std::vector<Candidate>& candidates, std::vector<DraftWanted>& wanted) {
  if (candidates.empty()) return;
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.probability > b.probability; });
  const Choice choice = best_choice(candidates, &model_costs_);
  if (choice.count == 0) return probe(candidates, wanted);
  const double saved_per_token = costs_.seconds(rows_) / tokens_ - choice.seconds_per_token;
  for (std::size_t i = 0; i < choice.count; ++i) {
    const Candidate& c = candidates[i];
    const auto tokens = static_cast<double>(std::min(c.job->room, kExpectedTokens));
    if (c.pending > kUsualPending && catch_up_seconds(c.pending) > saved_per_token * tokens) continue;
    wanted.push_back(wanted_of(*c.job, std::min(c.most, choice.depth)));
    rows_ += wanted.back().most;
    tokens_ += expected_accepted(c.probability, wanted.back().most);
  }
}

/// Candidates come with the likeliest first.
Drafter::Choice Drafter::best_choice(std::span<const Candidate> candidates, const StepCosts* steps) const {
  Choice best;
  best.seconds_per_token = costs_.seconds(rows_) / tokens_;
  for (std::int32_t depth = 1; depth <= kMaxDepth; ++depth) {
    std::int32_t rows = rows_;
    double tokens = tokens_;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const std::int32_t count = std::min(candidates[i].most, depth);
      rows += count;
      if (rows > max_rows_) break;
      tokens += expected_accepted(candidates[i].probability, count);
      const double model = depth * model_seconds(steps, static_cast<std::int32_t>(i) + 1);
      const double seconds_per_token = (costs_.seconds(rows) + model) / tokens;
      if (seconds_per_token < best.seconds_per_token) best = {i + 1, depth, seconds_per_token};
    }
  }
  return best;
}

/// A guess for the one that lacks least, if guesses of the best kind would pay for it and there is time to spend.
void Drafter::probe(std::span<const Candidate> candidates, std::vector<DraftWanted>& wanted) {
  if (rows_ >= max_rows_) return;
  Candidate c = *std::min_element(candidates.begin(), candidates.end(),
                                  [](const Candidate& a, const Candidate& b) { return a.pending < b.pending; });
  c.probability = kBestProbability;
  const std::span<const Candidate> one(&c, 1);
  // Steps may have been slow for once: what the size says is asked as well.
  if (best_choice(one, &model_costs_).count == 0 && best_choice(one, nullptr).count == 0) return;
  const double cost = catch_up_seconds(c.pending) + costs_.seconds(rows_ + 1) - costs_.seconds(rows_);
  if (!costs_.known() || probe_seconds_ < cost) return;
  probe_seconds_ = 0.0;
  wanted.push_back(wanted_of(*c.job, 1));
  ++rows_;
}

/// A step of the draft model, as measured, or (null) as its size lets expect.
double Drafter::model_seconds(const StepCosts* steps, std::int32_t rows) const {
  if (steps && steps->known() && costs_.known()) return steps->seconds(rows);
  return model_share_ * costs_.seconds(rows);
}

double Drafter::catch_up_seconds(std::int32_t pending) const {
  const double runs = std::max(1.0, static_cast<double>(pending) / StepCosts::kMaxRows);
  return runs * model_seconds(&model_costs_, pending);
}

}  // namespace sterna
