/// Tokens from the outputs of a plan: from the largest logits where the plan finds them and they are enough, else from
/// the whole row. Both give the same token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/sampler.h"
#include "plan/plan.h"

namespace sterna {

Sampled sample_output(Sampler& sampler, Plan& plan, std::size_t output, const SamplingParams& params,
                      const SamplingContext& context);

/// What a batch asks for (Batch::largest): entries are added by output.
class LargestWanted {
 public:
  /// The plan is asked here and never again: batches are built under the engine's lock, and a plan written in Python
  /// waits for whoever runs Python, who may be waiting for that lock.
  explicit LargestWanted(const Plan& plan) : most_(plan.most_largest()) {}

  void clear() { counts_.clear(); }
  /// For a choice whose history is `later` tokens longer by then.
  void add(const SamplingParams& params, const SamplingContext& context, std::int32_t later = 0) {
    counts_.push_back(most_ == 0 ? 0 : enough_logits(params, context, later, most_));
  }
  void add_whole_row() { counts_.push_back(0); }
  std::span<const std::int32_t> counts() const { return counts_; }

 private:
  const std::int32_t most_;
  std::vector<std::int32_t> counts_;
};

}  // namespace sterna
