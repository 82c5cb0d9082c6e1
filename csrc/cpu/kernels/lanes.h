/// Rows of floats by vectors of 16 lanes, the last one with what is left.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"

namespace sterna::cpu {
namespace {

/// Calls fn(offset, count) for every 16 elements, the last count being what is left.
template <class Fn>
inline void for_lanes(std::int64_t n, Fn fn) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) fn(i, 16);
  if (i < n) fn(i, static_cast<int>(n - i));
}

inline Level::F load_lanes(const float* p, int count) {
  return count == 16 ? Level::load(p) : Level::load_partial(p, count);
}
inline void store_lanes(float* p, Level::F v, int count) {
  if (count == 16) {
    Level::store(p, v);
  } else {
    Level::store_partial(p, v, count);
  }
}

}  // namespace
}  // namespace sterna::cpu
