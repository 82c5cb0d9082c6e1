/// Guesses of what a text will say next by what it said before, and the figures that tell whether guesses pay.
///
/// A guess never changes a result: a token of a draft counts only where the model's own choice is the same one.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
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

/// Where a draft is from: what followed a few equal tokens, what followed many, or a draft model.
enum class DraftSource : std::uint8_t { kShortMatch, kLongMatch, kModel };

DraftSource source_of(const PromptLookup::Found& found);

/// How often drafts of one request came true, by their source.
class Acceptance {
 public:
  /// Expected share of right tokens after a right one.
  double probability(DraftSource source) const { return probability_[static_cast<std::size_t>(source)]; }
  /// Where nothing was learnt yet: what to think of a source.
  void expect(DraftSource source, double probability) { probability_[static_cast<std::size_t>(source)] = probability; }
  /// `drafted` tokens were checked, the first `accepted` of them were right.
  void learn(DraftSource source, std::int32_t drafted, std::int32_t accepted);
  /// Whether a match should be tried although none is expected to pay: now and then, so that a change is seen.
  bool should_probe() { return ++steps_since_match_ >= kProbeSteps; }

 private:
  static constexpr std::int32_t kProbeSteps = 48;

  std::array<double, 3> probability_{0.4, 0.8, 0.7};
  std::int32_t steps_since_match_ = 0;
};

/// Seconds since some moment: what runs take is measured by it.
using StepClock = std::function<double()>;

/// What a batch of decode rows takes, by their number, as measured.
class StepCosts {
 public:
  static constexpr std::int32_t kMaxRows = 64;

  void measured(std::int32_t rows, double seconds);
  /// Relative to each other; guessed from its neighbours where a number of rows was not seen yet.
  double seconds(std::int32_t rows) const;
  /// Whether anything was measured: then these are seconds.
  bool known() const { return expected_[1] > 0.0; }

 private:
  /// From the measured neighbours, of which there must be one.
  double guess(std::int32_t rows) const;

  std::array<double, kMaxRows + 1> seconds_{};   // 0: not measured
  std::array<double, kMaxRows + 1> expected_{};  // for all numbers of rows
};

/// How many tokens to draft for one more sequence of a batch that has `rows` rows and brings `tokens` tokens so far
/// (its own row and token included): the number with the most tokens per second, 0 if none is better.
std::int32_t best_draft(const StepCosts& costs, std::int32_t rows, double tokens, double probability,
                        std::int32_t max_draft);

/// The tokens that such a draft is expected to bring.
double expected_accepted(double probability, std::int32_t draft);

}  // namespace sterna
