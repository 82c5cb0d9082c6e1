/// Rounds key and value rows on their way into a q8_0 cache; kv_cache.h has the contract.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/isa/level.h"
#include "plan/plan.h"

namespace sterna::cpu {
namespace {

/// Codes of x: |x| to the nearest with ties to even, one more where it lies half above that, and the sign.
inline Level::I round_away(Level::F x) {
  using V = Level;
  const V::I bits = V::bits(x);
  const V::F magnitude = V::from_bits(V::iand(bits, V::iset(0x7FFFFFFF)));
  const V::I even = V::round(magnitude);
  // Exact, and at most 0.5, whose bits are the largest: 0x3F000000.
  const V::I rest = V::bits(V::sub(magnitude, V::to_float(even)));
  const V::I is_half = V::imax(V::isub(V::imax(rest, V::izero()), V::iset(0x3EFFFFFF)), V::izero());
  const V::I code = V::iadd(even, is_half);
  const V::I negative = V::shift_right_signed<31>(bits);
  return V::isub(code, V::iand(V::shift_left<1>(code), negative));
}

/// n elements of a row to codes [n] and scales [n / 32, rounded up].
void to_q8_0(const float* x, std::int8_t* codes, std::uint16_t* scales, std::int64_t n) {
  using V = Level;
  for (std::int64_t begin = 0; begin < n; begin += kKvGroup) {
    const int count = static_cast<int>(n - begin < kKvGroup ? n - begin : kKvGroup);
    const int lanes[2] = {count < 16 ? count : 16, count < 16 ? 0 : count - 16};
    V::F parts[2] = {V::load_partial(x + begin, lanes[0]), V::zero()};
    if (lanes[1] > 0) parts[1] = V::load_partial(x + begin + 16, lanes[1]);
    // Over bit patterns, so that a NaN wins everywhere alike.
    const V::I magnitude = V::iset(0x7FFFFFFF);
    const V::I largest = V::imax(V::iand(V::bits(parts[0]), magnitude), V::iand(V::bits(parts[1]), magnitude));
    const float d = __builtin_bit_cast(float, V::ilargest(largest)) / 127.0f;
    alignas(64) std::uint16_t scale[16];
    V::store_half(scale, V::set(d));
    constexpr std::uint16_t kInfinity = 0x7C00, kNan = 0x7E00;
    *scales++ = scale[0] < kInfinity ? scale[0] : kNan;
    if (scale[0] == 0 || scale[0] >= kInfinity) {
      std::memset(codes + begin, 0, static_cast<std::size_t>(count));
      continue;
    }
    const V::F inverse = V::set(1.0f / d);
    alignas(64) std::int8_t bytes[kKvGroup];
    for (int part = 0; part < 2; ++part) V::store_s8(bytes + 16 * part, round_away(V::mul(parts[part], inverse)));
    std::memcpy(codes + begin, bytes, static_cast<std::size_t>(count));
  }
}

}  // namespace
}  // namespace sterna::cpu
