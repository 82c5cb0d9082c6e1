/// Arguments of the steps of recurrent layers.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/steps.h"

namespace sterna::cpu {

struct ShortConvStep {
  Rows x, y;
  std::vector<float> w;  // [kernel][channels]
  const float* bias;     // null: none
  int kernel;
  std::int64_t channels;
  std::int64_t layer;
};
void run_short_conv(const void* arguments, const StepContext& context);

struct SsmScanStep {
  Rows x, dt, b, c, y;
  const float* a;
  const float* d;
  bool per_channel;  // a has a row for each head, whose dimension is 1
  int heads, head_dim, groups, state_dim;
  std::int64_t layer;
};
void run_ssm_scan(const void* arguments, const StepContext& context);

struct DeltaRuleStep {
  Rows q, k, v, g, beta, y;
  int key_heads, value_heads, key_dim, value_dim;
  std::int64_t layer;
};
void run_delta_rule(const void* arguments, const StepContext& context);

}  // namespace sterna::cpu
