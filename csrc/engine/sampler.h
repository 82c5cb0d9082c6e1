/// Turns a row of logits into a token: penalties, filters, a counter-based draw, log-probabilities.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "plan/token_logit.h"

namespace sterna {

/// How one token is chosen. The order of the stages is llama.cpp's, because the sampling defaults that GGUF files
/// carry, and the habits of their users, assume it:
///
///   logit_bias -> repetition -> frequency and presence -> mask -> (temperature 0: the largest logit)
///   -> top_k -> top_p -> min_p -> temperature -> draw
///
/// Temperature comes last: the filters cut the model's own distribution, so a high temperature makes the choice among
/// the plausible tokens even, without letting implausible ones in. (transformers and vLLM scale first.) Ties go to the
/// lower token id, in the largest logit as at the edge of every filter.
struct SamplingParams {
  double temperature = 1.0;  // 0 is greedy
  std::int32_t top_k = 0;    // the k largest; 0 is off
  double top_p = 1.0;        // the fewest that reach this share of what top_k left; 1 is off
  double min_p = 0.0;        // those with at least this share of the likeliest's probability; 0 is off
  double repetition_penalty =
      1.0;  // divides positive logits, multiplies negative ones (CTRL, arXiv:1909.05858); 1 is off
  std::int32_t penalty_window = 64;  // tokens that the repetition penalty looks back at, prompt included; -1 is all
  double presence_penalty = 0.0;     // subtracted once from each token generated so far (OpenAI's meaning: no prompt)
  double frequency_penalty = 0.0;    // subtracted once per occurrence
  std::vector<std::pair<std::int32_t, float>> logit_bias;  // added; -inf bans the token
  std::uint64_t seed = 0;
};

/// Throws ArgumentError naming the first value out of range.
void validate(const SamplingParams& params, std::int32_t vocab_size);

/// Forbids tokens: clears bits of `allowed` (token t is bit t % 64 of word t / 64, all set on entry), given the tokens
/// generated so far. It must depend on these alone: a step may be repeated, or asked about another continuation.
/// False: nothing is forbidden.
using Mask = std::function<bool(std::span<const std::int32_t> generated, std::span<std::uint64_t> allowed)>;

struct TokenLogprob {
  std::int32_t token;
  float logprob;
};

/// The chosen token; log-probabilities are of the model's raw logits, before any stage above.
struct Sampled {
  std::int32_t token = 0;
  std::optional<float> logprob;  // where wanted, as the rest
  std::vector<TokenLogprob> top_logprobs;
};

/// What a choice depends on besides the logits.
struct SamplingContext {
  std::span<const std::int32_t> history;  // all tokens before the one to choose
  std::size_t num_prompt = 0;             // how many of these are the prompt
  std::uint32_t choice = 0;               // distinguishes requests with the same seed and prompt
  int top_logprobs = -1;                  // -1: no log-probabilities; n: also the n likeliest tokens'
  const Mask* mask = nullptr;
};

/// How many of a row's largest logits tell the choice for sure, where the history is `later` tokens longer by then; 0:
/// the whole row, or more than `most`, may be needed. A token that a penalty or bias lowers makes room for another one;
/// where one may rise, or is masked, nothing is sure.
std::int32_t enough_logits(const SamplingParams& params, const SamplingContext& context, std::int32_t later,
                           std::int32_t most);

/// A token that passed all filters, and its share of the draw (not normalised).
struct Candidate {
  float logit;
  std::int32_t token;
  double weight;
};

/// One per thread: it keeps scratch rows between calls.
class Sampler {
 public:
  explicit Sampler(std::int32_t vocab_size);

  /// Throws NumericError when a logit is NaN or infinite, ArgumentError when bans and mask leave no token.
  Sampled sample(const SamplingParams& params, std::span<const float> logits, const SamplingContext& context);

  /// The same token from as many of the row's largest logits as `enough_logits` says, by falling logit and rising
  /// token, all of the row's being finite. Nothing when min_p alone decides, and they do not reach down to it.
  std::optional<Sampled> sample_largest(const SamplingParams& params, std::span<const TokenLogit> largest,
                                        const SamplingContext& context);

  /// The candidates that `sample` draws from, in the order of the draw; one for greedy.
  std::span<const Candidate> candidates(const SamplingParams& params, std::span<const float> logits,
                                        const SamplingContext& context);

 private:
  std::span<const float> adjust(const SamplingParams& params, std::span<const float> logits,
                                const SamplingContext& context);
  void lower_candidates(const SamplingParams& params, const SamplingContext& context);
  void count_tokens(std::span<const std::int32_t> tokens);
  void forget_counts();
  void take_top_p(const SamplingParams& params, std::span<const float> row, float max);
  void cut_top_p(const SamplingParams& params, float max);
  void weigh(const SamplingParams& params, float max);
  std::int32_t choose(const SamplingParams& params, const SamplingContext& context) const;
  /// Index in candidates_ of the token drawn by the number `u` in [0, 1).
  std::size_t draw(double u) const;

  std::int32_t vocab_size_;
  std::vector<float> adjusted_;
  std::vector<std::uint32_t> counts_;  // by token; all zero between uses
  std::vector<std::int32_t> counted_;  // tokens whose count is not zero
  std::vector<std::uint64_t> allowed_;
  std::vector<Candidate> candidates_;
};

/// The k largest of `row`, largest first, ties by lower index; -inf never counts. Weights are left 0.
void select_largest(std::span<const float> row, std::size_t k, std::vector<Candidate>& out);

}  // namespace sterna
