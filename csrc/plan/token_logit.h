/// One entry of a row of logits.
#pragma once

#include <cstdint>

namespace sterna {

struct TokenLogit {
  std::int32_t token;
  float logit;
};

}  // namespace sterna
