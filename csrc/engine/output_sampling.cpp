#include "engine/output_sampling.h"

#include <optional>

namespace sterna {

Sampled sample_output(Sampler& sampler, Plan& plan, std::size_t output, const SamplingParams& params,
                      const SamplingContext& context) {
  if (const auto largest = plan.largest_logits(output); !largest.empty()) {
    if (std::optional<Sampled> sampled = sampler.sample_largest(params, largest, context)) return *sampled;
  }
  return sampler.sample(params, plan.logits_row(output), context);
}

}  // namespace sterna
