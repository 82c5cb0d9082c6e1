/// What EngineCore makes of a batch's logits: tokens, checked drafts, scores, and the texts that grow from them.
#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/engine_core.h"
#include "engine/softmax.h"

namespace sterna {

/// Of the next token of a request.
SamplingContext EngineCore::sampling_context(const ActiveRequest& request) {
  const GenerateRequest& generate = *request.generate();
  SamplingContext context;
  context.history = request.history();
  context.num_prompt = static_cast<std::size_t>(request.num_prompt);
  context.choice = generate.choice;
  context.top_logprobs = generate.top_logprobs;
  context.mask = &generate.mask;
  return context;
}

/// Samples and scores. Right drafts become tokens of their sequences, which the caller then advances.
void EngineCore::read_outputs() {
  outcomes_.clear();
  std::size_t output = 0;
  for (const ScheduledRows& rows : scheduler_.picked()) {
    auto& request = static_cast<ActiveRequest&>(*rows.sequence);
    Outcome outcome{&request, {}, nullptr};
    try {
      if (const ScoreRequest* score = request.score()) {
        read_scores(request, *score, rows, output);
      } else if (rows.num_outputs > 0) {
        read_tokens(outcome, rows, output);
      }
    } catch (const NumericError& error) {
      outcome.error = with_place(error, rows);
    } catch (...) {
      outcome.error = std::current_exception();
    }
    outcomes_.push_back(std::move(outcome));
    output += static_cast<std::size_t>(rows.num_outputs);
  }
}

/// The token after the last row of the request's own, and as long as the draft says the same, those after the draft's.
void EngineCore::read_tokens(Outcome& outcome, const ScheduledRows& rows, std::size_t first_output) {
  ActiveRequest& request = *outcome.request;
  const GenerateRequest& generate = *request.generate();
  const std::int32_t drafted = std::max(0, rows.first + rows.count - request.num_tokens());
  const std::size_t first = first_output + static_cast<std::size_t>(rows.num_outputs - 1 - drafted);
  std::int32_t accepted = 0;
  try {
    while (true) {
      const auto output = first + static_cast<std::size_t>(accepted);
      outcome.sampled.push_back(sample_output(sampler_, *plan_, output, generate.sampling, sampling_context(request)));
      const std::int32_t token = outcome.sampled.back().token;
      if (accepted == drafted || token != request.draft[static_cast<std::size_t>(accepted)]) break;
      if (std::find(generate.stop_ids.begin(), generate.stop_ids.end(), token) != generate.stop_ids.end()) break;
      request.tokens.push_back(token);
      if (request.forgot) request.all_tokens.push_back(token);
      ++accepted;
    }
  } catch (const NumericError& error) {  // the tokens before it still count
    outcome.error = with_place(error, rows);
  } catch (...) {
    outcome.error = std::current_exception();
  }
  if (drafted == 0) return;
  request.timings.draft_tokens += drafted;
  request.timings.accepted_tokens += accepted;
  drafter_.learn(request.drafting, drafted, accepted);
}

void EngineCore::read_scores(ActiveRequest& request, const ScoreRequest& score, const ScheduledRows& rows,
                             std::size_t first_output) {
  for (std::int32_t i = 0; i < rows.num_outputs; ++i) {
    const std::size_t output = first_output + static_cast<std::size_t>(i);
    const std::span<const float> logits = score.hidden.empty()
                                              ? plan_->logits_row(output)
                                              : plan_->kept_row(score.hidden, batch_output_rows_[output], output);
    const std::int32_t position = rows.first + rows.count - rows.num_outputs + i;
    const auto row = static_cast<std::size_t>(position - score.positions_from);
    if (score.logits) {
      std::copy(logits.begin(), logits.end(), request.scores.get() + row * request.score_columns);
      continue;
    }
    const RowExtent extent = row_extent(logits);
    if (!extent.finite) {
      throw NumericError("the logits after position " + std::to_string(position) + " are not all finite");
    }
    const std::int32_t next = score.tokens[static_cast<std::size_t>(position) + 1];
    const auto logit = static_cast<double>(logits[static_cast<std::size_t>(next)]);
    request.scores[row] = static_cast<float>(logit - log_sum_exp(logits, extent.max));
  }
}

/// The error, with the first value that went wrong: found by running the batch again with everything kept.
std::exception_ptr EngineCore::with_place(const NumericError& error, const ScheduledRows& rows) {
  std::string place;
  try {
    const auto entry = static_cast<std::size_t>(&rows - picked().data());
    const std::int32_t last = batch_first_rows_[entry] + rows.count - 1;
    for (std::int32_t row = last - rows.num_outputs + 1; row <= last && place.empty(); ++row) {
      place = plan_->first_non_finite(batch(), row);
    }
  } catch (const Error&) {
    // No memory for it, say: then without.
  }
  const std::string message = error.what();
  return std::make_exception_ptr(
      NumericError(place.empty() ? message : message + "; the first such value is " + place));
}

void EngineCore::apply(const Outcome& outcome) {
  ActiveRequest& request = *outcome.request;
  for (const Sampled& sampled : outcome.sampled) {
    if (!apply_token(request, sampled)) return;
  }
  if (outcome.error) return end(request, FinishReason::kError, outcome.error);
  if (outcome.sampled.empty()) {
    if (request.num_pending() == 0) end(request, FinishReason::kLength);
    return;
  }
  // Accepted tokens are in the sequence already; the last one is new.
  request.tokens.push_back(outcome.sampled.back().token);
  if (request.forgot) request.all_tokens.push_back(outcome.sampled.back().token);
  request.output_from = request.num_tokens() - 1;
  if (std::int64_t(request.history().size()) >= request.max_total) return end(request, FinishReason::kLength);
  if (request.num_tokens() < request.max_positions) return;
  if (!request.generate()->shift_context) return end(request, FinishReason::kLength);
  forget_middle(request);
}

/// One token more for the reader; false when it ended the request.
bool EngineCore::apply_token(ActiveRequest& request, const Sampled& sampled) {
  const GenerateRequest& generate = *request.generate();
  if (!request.first_output) request.first_output = ActiveRequest::Clock::now();
  const std::int32_t token = sampled.token;
  if (std::find(generate.stop_ids.begin(), generate.stop_ids.end(), token) != generate.stop_ids.end()) {
    end(request, FinishReason::kStop, nullptr, token);
    return false;
  }
  ++request.timings.generated_tokens;
  Event event;
  event.sampled = sampled;
  event.text = request.text.push(pieces_->piece(token, generate.special));
  request.results.push(std::move(event));
  if (const std::string* stop = request.text.stopped()) {
    end(request, FinishReason::kStop, nullptr, *stop);
    return false;
  }
  return true;
}

/// A full context keeps its beginning, at most a quarter of it, and its last half; all of it is computed again.
void EngineCore::forget_middle(ActiveRequest& request) {
  const std::int64_t limit = request.max_positions;
  const auto kept = std::min<std::int64_t>(request.num_prompt, limit / 4);
  const auto tail = std::max<std::int64_t>(1, limit / 2);
  if (!request.forgot) request.all_tokens = request.tokens;
  request.forgot = true;
  std::vector<std::int32_t> tokens(request.tokens.begin(), request.tokens.begin() + kept);
  tokens.insert(tokens.end(), request.tokens.end() - tail, request.tokens.end());
  scheduler_.forget(request);
  request.tokens = std::move(tokens);
  request.output_from = request.num_tokens() - 1;
}

}  // namespace sterna
