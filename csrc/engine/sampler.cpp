#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "engine/random.h"
#include "engine/softmax.h"

namespace sterna {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

bool before(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

void require(bool ok, const char* name, double value, const char* range) {
  if (!ok) throw ArgumentError(std::string(name) + " is " + std::to_string(value) + "; it must be " + range);
}

/// Appends what is at least `bound`, by ascending token.
void gather(std::span<const float> row, float bound, std::vector<Candidate>& out) {
  constexpr std::size_t kLanes = 16;
  std::size_t i = 0;
  const auto one = [&](std::size_t t) {
    if (row[t] >= bound && row[t] != kBanned) out.push_back({row[t], static_cast<std::int32_t>(t), 0.0});
  };
  for (; i + kLanes <= row.size(); i += kLanes) {
    std::uint32_t any = 0;
    for (std::size_t j = 0; j < kLanes; ++j) any |= row[i + j] >= bound ? 1u : 0u;
    if (!any) continue;
    for (std::size_t j = 0; j < kLanes; ++j) one(i + j);
  }
  for (; i < row.size(); ++i) one(i);
}

bool has_repetition(const SamplingParams& p) { return p.repetition_penalty != 1.0 && p.penalty_window != 0; }
bool has_occurrence(const SamplingParams& p) { return p.presence_penalty != 0.0 || p.frequency_penalty != 0.0; }

/// What the repetition penalty looks back at.
std::span<const std::int32_t> penalty_window(const SamplingParams& params, std::span<const std::int32_t> history) {
  if (params.penalty_window < 0 || history.size() <= static_cast<std::size_t>(params.penalty_window)) return history;
  return history.last(static_cast<std::size_t>(params.penalty_window));
}

/// A logit near the edge of float stays a number.
float repeated(float logit, float penalty) {
  return std::min(logit > 0.0f ? logit / penalty : logit * penalty, std::numeric_limits<float>::max());
}

float occurred(const SamplingParams& params, float logit, std::uint32_t count) {
  return logit - (static_cast<float>(count) * static_cast<float>(params.frequency_penalty) +
                  static_cast<float>(params.presence_penalty));
}

[[noreturn]] void fail_all_banned() { throw ArgumentError("logit_bias and mask leave no token to choose"); }

[[noreturn]] void fail_non_finite(std::span<const float> logits) {
  const auto at = static_cast<std::size_t>(find_non_finite(logits));
  const char* what = std::isnan(logits[at]) ? "NaN" : "infinite";
  throw NumericError("the logit of token " + std::to_string(at) + " is " + what);
}

}  // namespace

void validate(const SamplingParams& p, std::int32_t vocab_size) {
  require(std::isfinite(p.temperature) && p.temperature >= 0, "temperature", p.temperature, "finite and not negative");
  require(p.top_k >= 0, "top_k", p.top_k, "0 (off) or more");
  require(p.top_p > 0 && p.top_p <= 1, "top_p", p.top_p, "above 0 and at most 1");
  require(p.min_p >= 0 && p.min_p <= 1, "min_p", p.min_p, "from 0 to 1");
  // The penalties work in float: a value that underflows or overflows there would turn logits into NaN.
  require(p.repetition_penalty >= 1e-6 && p.repetition_penalty <= 1e6, "repetition_penalty", p.repetition_penalty,
          "from 1e-6 to 1e6");
  require(p.penalty_window >= -1, "penalty_window", p.penalty_window, "-1 (all) or more");
  require(std::abs(p.presence_penalty) <= 1e6, "presence_penalty", p.presence_penalty, "from -1e6 to 1e6");
  require(std::abs(p.frequency_penalty) <= 1e6, "frequency_penalty", p.frequency_penalty, "from -1e6 to 1e6");
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= vocab_size) {
      throw ArgumentError("logit_bias names token " + std::to_string(token) + "; the vocabulary has " +
                          std::to_string(vocab_size));
    }
    require(bias == kBanned || std::abs(bias) <= 1e6f, "a logit_bias", static_cast<double>(bias),
            "-inf, or from -1e6 to 1e6");
  }
}

void select_largest(std::span<const float> row, std::size_t k, std::vector<Candidate>& out) {
  out.clear();
  k = std::min(k, row.size());
  if (k == 0) return;
  // Keeps at most 2k candidates: whenever they are full, the better half stays and its last one is the bar for later
  // tokens, which lose ties because their ids are higher.
  const std::size_t capacity = 2 * k;
  out.reserve(std::min(capacity, row.size()));
  float bar = kBanned;
  const auto one = [&](std::size_t t) {
    if (!(row[t] > bar)) return;
    out.push_back({row[t], static_cast<std::int32_t>(t), 0.0});
    if (out.size() < capacity) return;
    std::nth_element(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(k - 1), out.end(), before);
    out.resize(k);
    bar = out.back().logit;
  };
  constexpr std::size_t kLanes = 16;
  std::size_t i = 0;
  for (; i + kLanes <= row.size(); i += kLanes) {
    std::uint32_t any = 0;
    for (std::size_t j = 0; j < kLanes; ++j) any |= row[i + j] > bar ? 1u : 0u;
    if (!any) continue;
    for (std::size_t j = 0; j < kLanes; ++j) one(i + j);
  }
  for (; i < row.size(); ++i) one(i);
  std::sort(out.begin(), out.end(), before);
  if (out.size() > k) out.resize(k);
}

Sampler::Sampler(std::int32_t vocab_size) : vocab_size_(vocab_size) {}

void Sampler::count_tokens(std::span<const std::int32_t> tokens) {
  counts_.resize(static_cast<std::size_t>(vocab_size_));
  for (const std::int32_t token : tokens) {
    if (token < 0) continue;  // a row of embeddings
    if (counts_[static_cast<std::size_t>(token)]++ == 0) counted_.push_back(token);
  }
}

void Sampler::forget_counts() {
  for (const std::int32_t token : counted_) counts_[static_cast<std::size_t>(token)] = 0;
  counted_.clear();
}

/// The row after bias, penalties and mask; the model's own row where there are none of these.
std::span<const float> Sampler::adjust(const SamplingParams& params, std::span<const float> logits,
                                       const SamplingContext& context) {
  const bool repetition = has_repetition(params);
  const bool occurrence = has_occurrence(params);
  const auto generated = context.history.subspan(context.num_prompt);
  bool masked = false;
  if (context.mask && *context.mask) {
    const auto num_tokens = static_cast<std::size_t>(vocab_size_);
    allowed_.assign((num_tokens + 63) / 64, ~std::uint64_t{0});
    masked = (*context.mask)(generated, allowed_);
  }
  if (params.logit_bias.empty() && !repetition && !occurrence && !masked) return logits;

  adjusted_.assign(logits.begin(), logits.end());
  for (const auto& [token, bias] : params.logit_bias) adjusted_[static_cast<std::size_t>(token)] += bias;
  if (repetition) {
    count_tokens(penalty_window(params, context.history));
    for (const std::int32_t token : counted_) {
      float& logit = adjusted_[static_cast<std::size_t>(token)];
      logit = repeated(logit, static_cast<float>(params.repetition_penalty));
    }
    forget_counts();
  }
  if (occurrence) {
    count_tokens(generated);
    for (const std::int32_t token : counted_) {
      float& logit = adjusted_[static_cast<std::size_t>(token)];
      logit = occurred(params, logit, counts_[static_cast<std::size_t>(token)]);
    }
    forget_counts();
  }
  if (masked) {
    for (std::size_t t = 0; t < adjusted_.size(); ++t) {
      if (!(allowed_[t / 64] >> (t % 64) & 1)) adjusted_[t] = kBanned;
    }
  }
  return adjusted_;
}

/// Fills candidates_ with what top_p and min_p leave of the whole row, largest first. All filters keep a prefix of the
/// order by logit, so only as much of the row is sorted as the prefix may need: bounds below the maximum widen until it
/// is reached.
void Sampler::take_top_p(const SamplingParams& params, std::span<const float> row, float max) {
  const double target = params.top_p < 1.0 ? params.top_p * sum_exp(row, max) : std::numeric_limits<double>::infinity();
  // A little below the true bound of min_p, which is then decided on the weights.
  const double floor = params.min_p > 0.0 ? std::log(params.min_p) - 1e-3 : -std::numeric_limits<double>::infinity();
  for (double depth = params.top_p < 1.0 ? 6.0 : std::numeric_limits<double>::infinity();; depth *= 2) {
    const bool last = -depth <= floor || depth > 100.0;
    const double bound = last ? floor : -depth;
    candidates_.clear();
    gather(row, static_cast<float>(static_cast<double>(max) + bound), candidates_);
    std::sort(candidates_.begin(), candidates_.end(), before);
    double reached = 0.0;
    for (std::size_t i = 0; i < candidates_.size(); ++i) {
      reached += static_cast<double>(exp_nonpositive(candidates_[i].logit - max));
      if (reached >= target) {
        candidates_.resize(i + 1);
        return;
      }
    }
    if (last) return;
  }
}

std::span<const Candidate> Sampler::candidates(const SamplingParams& params, std::span<const float> logits,
                                               const SamplingContext& context) {
  const RowExtent extent = row_extent(logits);
  if (!extent.finite) fail_non_finite(logits);
  const std::span<const float> row = adjust(params, logits, context);
  const float max = row.data() == logits.data() ? extent.max : row_extent(row).max;
  if (max == kBanned) fail_all_banned();
  candidates_.clear();
  if (params.temperature == 0.0) {
    candidates_.push_back({max, static_cast<std::int32_t>(find_first(row, max)), 1.0});
    return candidates_;
  }

  if (params.top_k > 0) {
    select_largest(row, static_cast<std::size_t>(params.top_k), candidates_);
    cut_top_p(params, max);
  } else if (params.top_p < 1.0 || params.min_p > 0.0) {
    take_top_p(params, row, max);
  } else {
    gather(row, kBanned, candidates_);  // by token: nothing needs the order by logit
  }
  weigh(params, max);
  return candidates_;
}

/// What top_p leaves of what top_k left.
void Sampler::cut_top_p(const SamplingParams& params, float max) {
  if (params.top_p >= 1.0) return;
  double total = 0.0;
  for (Candidate& c : candidates_) total += c.weight = static_cast<double>(exp_nonpositive(c.logit - max));
  double reached = 0.0;
  std::size_t kept = 0;
  while (kept < candidates_.size() && reached < params.top_p * total) reached += candidates_[kept++].weight;
  candidates_.resize(kept);
}

/// Applies min_p and temperature.
void Sampler::weigh(const SamplingParams& params, float max) {
  if (params.min_p > 0.0) {
    std::size_t kept = 1;
    while (kept < candidates_.size() &&
           static_cast<double>(exp_nonpositive(candidates_[kept].logit - max)) >= params.min_p) {
      ++kept;
    }
    candidates_.resize(kept);
  }
  for (Candidate& c : candidates_) {
    const double scaled = (static_cast<double>(c.logit) - static_cast<double>(max)) / params.temperature;
    // Below -100 the weight is 0 either way, and the quotient may not fit a float.
    c.weight = static_cast<double>(exp_nonpositive(static_cast<float>(std::max(scaled, -100.0))));
  }
}

std::size_t Sampler::draw(double u) const {
  double total = 0.0;
  for (const Candidate& c : candidates_) total += c.weight;
  const double target = u * total;
  double reached = 0.0;
  std::size_t chosen = 0;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    if (candidates_[i].weight <= 0.0) continue;
    chosen = i;  // stays where rounding lets the sum end just below the target
    reached += candidates_[i].weight;
    if (reached > target) break;
  }
  return chosen;
}

std::int32_t Sampler::choose(const SamplingParams& params, const SamplingContext& context) const {
  const bool certain = candidates_.size() == 1;
  const std::size_t chosen = certain ? 0 : draw(random_uniform(params.seed, context.choice, context.history.size()));
  return candidates_[chosen].token;
}

Sampled Sampler::sample(const SamplingParams& params, std::span<const float> logits, const SamplingContext& context) {
  candidates(params, logits, context);
  Sampled sampled;
  sampled.token = choose(params, context);
  if (context.top_logprobs < 0) return sampled;

  const double total = log_sum_exp(logits, row_extent(logits).max);
  const auto logprob = [&](float logit) { return static_cast<float>(static_cast<double>(logit) - total); };
  sampled.logprob = logprob(logits[static_cast<std::size_t>(sampled.token)]);
  select_largest(logits, static_cast<std::size_t>(context.top_logprobs), candidates_);
  sampled.top_logprobs.reserve(candidates_.size());
  for (const Candidate& c : candidates_) sampled.top_logprobs.push_back({c.token, logprob(c.logit)});
  return sampled;
}

std::int32_t enough_logits(const SamplingParams& params, const SamplingContext& context, std::int32_t later,
                           std::int32_t most) {
  if ((context.mask && *context.mask) || context.top_logprobs >= 0) return 0;
  const bool rises = std::ranges::any_of(params.logit_bias, [](const auto& entry) { return entry.second > 0.0f; });
  if (rises || params.repetition_penalty < 1.0 || params.presence_penalty < 0.0 || params.frequency_penalty < 0.0) {
    return 0;
  }
  // Tokens that may be lowered, at most.
  std::size_t lowered = params.logit_bias.size();
  if (has_repetition(params)) {
    const std::size_t length = context.history.size() + static_cast<std::size_t>(later);
    lowered += params.penalty_window < 0 ? length : std::min(length, static_cast<std::size_t>(params.penalty_window));
  }
  if (has_occurrence(params)) lowered += context.history.size() - context.num_prompt + static_cast<std::size_t>(later);
  std::size_t enough = lowered + 1;  // for the largest logit
  if (params.temperature > 0.0) {
    if (params.top_k > 0) {
      enough = lowered + static_cast<std::size_t>(params.top_k);
    } else if (params.min_p > 0.0 && params.top_p >= 1.0 && lowered == 0) {
      enough = static_cast<std::size_t>(most);  // usually
    } else {
      return 0;
    }
  }
  return enough <= static_cast<std::size_t>(most) ? static_cast<std::int32_t>(enough) : 0;
}

/// Bias and penalties, which only lower here, then the order by logit again.
void Sampler::lower_candidates(const SamplingParams& params, const SamplingContext& context) {
  for (const auto& [token, bias] : params.logit_bias) {
    for (Candidate& c : candidates_) {
      if (c.token == token) c.logit += bias;
    }
  }
  const auto lower = [&](std::span<const std::int32_t> tokens, const auto& lowered) {
    count_tokens(tokens);
    for (Candidate& c : candidates_) {
      if (const std::uint32_t count = counts_[static_cast<std::size_t>(c.token)]) c.logit = lowered(c.logit, count);
    }
    forget_counts();
  };
  if (has_repetition(params)) {
    lower(penalty_window(params, context.history),
          [&](float logit, std::uint32_t) { return repeated(logit, static_cast<float>(params.repetition_penalty)); });
  }
  if (has_occurrence(params)) {
    lower(context.history.subspan(context.num_prompt),
          [&](float logit, std::uint32_t count) { return occurred(params, logit, count); });
  }
  std::ranges::sort(candidates_, before);
  while (!candidates_.empty() && candidates_.back().logit == kBanned) candidates_.pop_back();
}

std::optional<Sampled> Sampler::sample_largest(const SamplingParams& params, std::span<const TokenLogit> largest,
                                               const SamplingContext& context) {
  candidates_.clear();
  for (const auto& [token, logit] : largest) candidates_.push_back({logit, token, 0.0});
  lower_candidates(params, context);
  if (candidates_.empty()) fail_all_banned();
  const float max = candidates_.front().logit;
  if (params.temperature == 0.0) {
    candidates_.resize(1);
  } else if (params.top_k > 0) {
    candidates_.resize(std::min(candidates_.size(), static_cast<std::size_t>(params.top_k)));
    cut_top_p(params, max);
    weigh(params, max);
  } else {
    weigh(params, max);
    const bool is_whole_row = largest.size() == static_cast<std::size_t>(vocab_size_);
    if (candidates_.size() == largest.size() && !is_whole_row) return std::nullopt;
  }
  Sampled sampled;
  sampled.token = choose(params, context);
  return sampled;
}

}  // namespace sterna
