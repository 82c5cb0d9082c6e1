#include "engine/sequence.h"

#include <algorithm>

namespace sterna {

std::int32_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const auto shorter = std::min(a.size(), b.size());
  const auto differs = std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(shorter), b.begin());
  return static_cast<std::int32_t>(differs.first - a.begin());
}

}  // namespace sterna
