/// Guesses of what a text will say next, and whether computing them along with its last token pays.
///
/// A guess never changes a result: a token of a draft counts only where the model's own choice is the same one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

namespace sterna {

/// Finds where the last tokens of a text stood before in it ("prompt lookup"): what followed there may follow again.
class PromptLookup {
 public:
  struct Found {
    std::span<const std::int32_t> draft;  // what followed, as far as it is known; into the history
    std::int32_t match = 0;               // how many tokens before it are the same
  };

  /// The longest match of at least three tokens, of equally long ones the last. Remembers what it saw: `history` must
  /// continue that of the call before.
  Found find(std::span<const std::int32_t> history, std::size_t max_draft);

 private:
  std::unordered_map<std::uint64_t, std::int32_t> last_;  // hash of three tokens -> where the third stood last
  std::vector<std::int32_t> before_;                      // by position: the same hash's place before; -1: none
};

/// How often drafts of one request came true; apart for short and for long matches.
class Acceptance {
 public:
  /// Expected share of right tokens after a right one.
  double probability(std::int32_t match) const { return probability_[index(match)]; }
  /// `drafted` tokens were checked, the first `accepted` of them were right.
  void learn(std::int32_t match, std::int32_t drafted, std::int32_t accepted);
  /// Whether a draft should be tried although none is expected to pay: now and then, so that a change is seen.
  bool should_probe() { return ++steps_since_draft_ >= kProbeSteps; }

 private:
  static constexpr std::int32_t kProbeSteps = 48;
  static std::size_t index(std::int32_t match) { return match >= 8 ? 1 : 0; }

  std::array<double, 2> probability_{0.4, 0.8};
  std::int32_t steps_since_draft_ = 0;
};

/// What a batch of decode rows takes, by their number, as measured.
class StepCosts {
 public:
  static constexpr std::int32_t kMaxRows = 64;

  void measured(std::int32_t rows, double seconds);
  /// Relative to each other; guessed from its neighbours where a number of rows was not seen yet.
  double seconds(std::int32_t rows) const;

 private:
  std::array<double, kMaxRows + 1> seconds_{};  // 0: not measured
};

/// How many tokens to draft for one more sequence of a batch that has `rows` rows and brings `tokens` tokens so far
/// (its own row and token included): the number with the most tokens per second, 0 if none is better.
std::int32_t best_draft(const StepCosts& costs, std::int32_t rows, double tokens, double probability,
                        std::int32_t max_draft);

/// The tokens that such a draft is expected to bring.
double expected_accepted(double probability, std::int32_t draft);

}  // namespace sterna
