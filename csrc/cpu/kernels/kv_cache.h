/// How attention reads the cached keys and values of each type of cache.
///
/// Contract of q8_0, for the key or value row of one head, in groups of 32 elements (the last may be shorter):
///   scale      d = largest |x| / 127; what is stored is d as binary16, ties to even
///   codes      x * (1 / d), to the nearest, ties away from zero: -127 .. 127. 0 where the stored scale is 0.
///   value      code * scale, which is exact in float
/// This is GGML's block_q8_0, but for groups whose scale is no finite binary16: they are stored as scale NaN and codes
/// 0, so that a NaN or an infinity in K or V reaches the logits and cannot hide behind a weight of zero.
#pragma once

#include <cstdint>

#include "cpu/isa/level.h"
#include "engine/batch.h"
#include "plan/plan.h"

namespace sterna::cpu {
namespace {

/// A cache of floats: Code is what is stored of an element; without scales it is the value.
struct FloatCache {
  using Code = float;
  static constexpr bool kScaled = false;
  static Level::F load(const Code* p) { return Level::load(p); }
};

struct HalfCache {
  using Code = std::uint16_t;
  static constexpr bool kScaled = false;
  static Level::F load(const Code* p) { return Level::load_half(p); }
};

struct Q8Cache {
  using Code = std::uint8_t;  // two's complement
  static constexpr bool kScaled = true;
  static Level::F load(const Code* p) { return Level::to_float(Level::iload_s8(p)); }
};

/// The 64 scales, one for each slot, of the group that element `at` belongs to; the codes of the tile, [64][dim] or
/// [dim][64], lie before them. Null for a cache without.
template <class Cache>
inline const std::uint16_t* group_scales(const typename Cache::Code* tile, int dim, int at) {
  if constexpr (Cache::kScaled) {
    return reinterpret_cast<const std::uint16_t*>(tile + dim * kPageSlots) + at / kKvGroup * kPageSlots;
  } else {
    return nullptr;
  }
}

}  // namespace
}  // namespace sterna::cpu
