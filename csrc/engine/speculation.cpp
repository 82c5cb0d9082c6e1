#include "engine/speculation.h"

#include <algorithm>
#include <utility>

namespace sterna {
namespace {

constexpr std::size_t kGram = 3;
// Places that are compared, the last ones first, and how far back.
constexpr int kMaxPlaces = 16;
constexpr std::int32_t kMaxMatch = 32;
constexpr std::int32_t kLongMatch = 8;
// Of a new measurement in the running mean.
constexpr double kNewShare = 0.2;
// A row more takes about so much of the first one's time where nothing was measured.
constexpr double kRowShare = 0.15;

std::uint64_t hash_gram(std::span<const std::int32_t> history, std::size_t last) {
  std::uint64_t hash = 0;
  for (std::size_t i = last + 1 - kGram; i <= last; ++i) {
    hash = (hash ^ static_cast<std::uint32_t>(history[i])) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

PromptLookup::Found PromptLookup::find(std::span<const std::int32_t> history, std::size_t max_draft) {
  while (before_.size() < history.size()) {
    const std::size_t at = before_.size();
    std::int32_t previous = -1;
    if (at + 1 >= kGram) {
      const auto [place, is_new] = last_.try_emplace(hash_gram(history, at), static_cast<std::int32_t>(at));
      if (!is_new) previous = std::exchange(place->second, static_cast<std::int32_t>(at));
    }
    before_.push_back(previous);
  }
  Found best;
  if (history.size() <= kGram || max_draft == 0) return best;
  const auto end = static_cast<std::int32_t>(history.size()) - 1;
  std::int32_t at = before_.back();
  for (int places = 0; at >= 0 && places < kMaxPlaces; ++places, at = before_[static_cast<std::size_t>(at)]) {
    std::int32_t match = 0;
    while (match <= at && match < kMaxMatch &&
           history[static_cast<std::size_t>(at - match)] == history[static_cast<std::size_t>(end - match)]) {
      ++match;
    }
    if (match < static_cast<std::int32_t>(kGram) || match <= best.match) continue;
    const auto first = static_cast<std::size_t>(at) + 1;
    best = {history.subspan(first, std::min(max_draft, history.size() - first)), match};
  }
  return best;
}

DraftSource source_of(const PromptLookup::Found& found) {
  return found.match >= kLongMatch ? DraftSource::kLongMatch : DraftSource::kShortMatch;
}

void Acceptance::learn(DraftSource source, std::int32_t drafted, std::int32_t accepted) {
  double& probability = probability_[static_cast<std::size_t>(source)];
  for (std::int32_t i = 0; i < std::min(drafted, accepted + 1); ++i) {
    probability += 0.1 * ((i < accepted ? 1.0 : 0.0) - probability);
  }
  if (source != DraftSource::kModel) steps_since_match_ = 0;
}

void StepCosts::measured(std::int32_t rows, double seconds) {
  if (rows < 1 || rows > kMaxRows) return;
  double& mean = seconds_[static_cast<std::size_t>(rows)];
  // A pause of the machine is no cost of the rows.
  mean = mean == 0.0 ? seconds : mean + kNewShare * (std::min(seconds, 2 * mean) - mean);
  for (std::int32_t r = 1; r <= kMaxRows; ++r) expected_[static_cast<std::size_t>(r)] = guess(r);
  // Fewer rows take no longer. Where they seem to, they were measured in a bad moment, and maybe never again.
  for (std::size_t r = kMaxRows - 1; r > 0; --r) expected_[r] = std::min(expected_[r], expected_[r + 1]);
}

double StepCosts::seconds(std::int32_t rows) const {
  rows = std::clamp(rows, 1, kMaxRows);
  return known() ? expected_[static_cast<std::size_t>(rows)] : 1 + kRowShare * (rows - 1);
}

double StepCosts::guess(std::int32_t rows) const {
  const auto at = [&](std::int32_t r) { return seconds_[static_cast<std::size_t>(r)]; };
  if (at(rows) > 0.0) return at(rows);
  std::int32_t below = rows - 1;
  while (below > 0 && at(below) == 0.0) --below;
  std::int32_t above = rows + 1;
  while (above <= kMaxRows && at(above) == 0.0) ++above;
  const auto guessed = [&](double known, std::int32_t known_rows) {
    return known * (1 + kRowShare * (rows - 1)) / (1 + kRowShare * (known_rows - 1));
  };
  if (below > 0 && above <= kMaxRows) {
    return at(below) + (at(above) - at(below)) * (rows - below) / (above - below);
  }
  if (below > 0) return guessed(at(below), below);
  return guessed(at(above), above);
}

double expected_accepted(double probability, std::int32_t draft) {
  double total = 0.0, all_right = 1.0;
  for (std::int32_t i = 0; i < draft; ++i) total += all_right *= probability;
  return total;
}

std::int32_t best_draft(const StepCosts& costs, std::int32_t rows, double tokens, double probability,
                        std::int32_t max_draft) {
  std::int32_t best = 0;
  double best_rate = tokens / costs.seconds(rows);
  for (std::int32_t draft = 1; draft <= max_draft; ++draft) {
    const double rate = (tokens + expected_accepted(probability, draft)) / costs.seconds(rows + draft);
    if (rate <= best_rate) continue;
    best = draft;
    best_rate = rate;
  }
  return best;
}

}  // namespace sterna
