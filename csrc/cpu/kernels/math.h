/// Elementary functions over the vector vocabulary: the same operations in the same order on every level.
#pragma once

#include "cpu/isa/level.h"

namespace sterna::cpu {
namespace {

/// e^x to about 1 ulp. Below -87.3 it stays at the smallest normal number, above 88 at e^88; a NaN stays one.
inline Level::F exp(Level::F x) {
  using V = Level;
  x = V::max(V::set(-87.3f), x);
  x = V::min(V::set(88.0f), x);
  const V::I n = V::round(V::mul(x, V::set(1.44269504f)));
  const V::F nf = V::to_float(n);
  // ln 2 in two parts, so that the remainder is exact to float precision.
  V::F r = V::fma(nf, V::set(-0.693359375f), x);
  r = V::fma(nf, V::set(2.12194440e-4f), r);
  // Coefficients of Cephes' expf.
  V::F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.0f)));
  const V::F power = V::from_bits(V::shift_left<23>(V::iadd(n, V::iset(127))));
  return V::mul(p, power);
}

inline float exp(float x) {
  alignas(64) float lanes[16];
  Level::store(lanes, exp(Level::set(x)));
  return lanes[0];
}

/// 1 / (1 + e^-x)
inline Level::F sigmoid(Level::F x) {
  using V = Level;
  return V::div(V::set(1.0f), V::add(V::set(1.0f), exp(V::sub(V::zero(), x))));
}

/// a where x < 0, minus zero included, otherwise b.
inline Level::F where_negative(Level::F x, Level::F a, Level::F b) {
  using V = Level;
  const V::I mask = V::shift_right_signed<31>(V::bits(x));
  return V::from_bits(V::iadd(V::iand(V::bits(a), mask), V::iand(V::bits(b), V::isub(V::iset(-1), mask))));
}

inline Level::F magnitude(Level::F x) { return Level::from_bits(Level::iand(Level::bits(x), Level::iset(0x7FFFFFFF))); }

/// x + x^3 p(x^2) where |x| < 0.625 (coefficients of Cephes' tanhf), beyond that 1 - 2 / (e^2|x| + 1) with the sign of
/// x.
inline Level::F tanh(Level::F x) {
  using V = Level;
  const V::F z = V::mul(x, x);
  V::F p = V::set(-5.70498872745e-3f);
  p = V::fma(p, z, V::set(2.06390887954e-2f));
  p = V::fma(p, z, V::set(-5.37397155531e-2f));
  p = V::fma(p, z, V::set(1.33314422036e-1f));
  p = V::fma(p, z, V::set(-3.33332819422e-1f));
  const V::F near = V::fma(V::mul(p, z), x, x);
  const V::F size = magnitude(x);
  const V::F power = exp(V::add(size, size));
  const V::F far = V::sub(V::set(1.0f), V::div(V::set(2.0f), V::add(power, V::set(1.0f))));
  return where_negative(V::sub(size, V::set(0.625f)), near, where_negative(x, V::sub(V::zero(), far), far));
}

/// ln(1 + e^x) = max(x, 0) + ln(1 + u) with u = e^-|x|; ln(1 + u) = 2 artanh(u / (2 + u)), a series in at most 1/3.
struct Softplus {
  static Level::F apply(Level::F x) {
    using V = Level;
    const V::F u = exp(V::sub(V::zero(), magnitude(x)));
    const V::F s = V::div(u, V::add(V::set(2.0f), u));
    const V::F square = V::mul(s, s);
    V::F p = V::set(1.0f / 15);
    p = V::fma(p, square, V::set(1.0f / 13));
    p = V::fma(p, square, V::set(1.0f / 11));
    p = V::fma(p, square, V::set(1.0f / 9));
    p = V::fma(p, square, V::set(1.0f / 7));
    p = V::fma(p, square, V::set(1.0f / 5));
    p = V::fma(p, square, V::set(1.0f / 3));
    p = V::fma(p, square, V::set(1.0f));
    return V::fma(V::add(s, s), p, V::max(V::zero(), x));
  }
};

struct Silu {
  static Level::F apply(Level::F x) { return Level::mul(x, sigmoid(x)); }
};

struct Sigmoid {
  static Level::F apply(Level::F x) { return sigmoid(x); }
};

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), by way of tanh(u) = 2 sigmoid(2u) - 1.
struct GeluTanh {
  static Level::F apply(Level::F x) {
    using V = Level;
    const V::F cubic = V::fma(V::mul(V::set(0.044715f), V::mul(x, x)), x, x);
    return V::mul(x, sigmoid(V::mul(V::set(1.5957691216f), cubic)));
  }
};

/// x Phi(x), Phi the normal distribution function: e^(-x^2 / 2) times a polynomial in t = 1 / (1 + |x| / 4), fitted
/// over |x| < 13.4 to 0.2 * 2^-24 of its value, is the tail beyond |x|.
struct Gelu {
  static Level::F apply(Level::F x) {
    using V = Level;
    const V::F t = V::div(V::set(1.0f), V::fma(magnitude(x), V::set(0.25f), V::set(1.0f)));
    V::F p = V::set(3.458442539e-2f);
    p = V::fma(p, t, V::set(-1.996234357e-1f));
    p = V::fma(p, t, V::set(4.030745924e-1f));
    p = V::fma(p, t, V::set(-3.442133963e-1f));
    p = V::fma(p, t, V::set(3.134248555e-1f));
    p = V::fma(p, t, V::set(-2.519703656e-2f));
    p = V::fma(p, t, V::set(1.232434437e-1f));
    p = V::fma(p, t, V::set(9.445700049e-2f));
    p = V::fma(p, t, V::set(1.002734751e-1f));
    p = V::fma(p, t, V::set(-2.394243165e-5f));
    const V::F tail = V::mul(p, exp(V::mul(V::mul(x, x), V::set(-0.5f))));
    return V::mul(x, where_negative(x, tail, V::sub(V::set(1.0f), tail)));
  }
};

struct Tanh {
  static Level::F apply(Level::F x) { return tanh(x); }
};

/// max(x, 0)
struct Relu {
  static Level::F apply(Level::F x) { return Level::max(Level::zero(), x); }
};

/// max(x, 0)^2
struct Relu2 {
  static Level::F apply(Level::F x) {
    const Level::F positive = Level::max(Level::zero(), x);
    return Level::mul(positive, positive);
  }
};

/// activation(gate) * up
template <class Kind>
inline Level::F apply_gate(Level::F gate, Level::F up) {
  return Level::mul(Kind::apply(gate), up);
}

/// g sigmoid(1.702 g) (u + 1) with g = min(gate, 7) and u = up within -7 .. 7 (gpt-oss).
struct ClampedSwiglu {};
template <>
inline Level::F apply_gate<ClampedSwiglu>(Level::F gate, Level::F up) {
  using V = Level;
  const V::F g = V::min(V::set(7.0f), gate);
  const V::F u = V::max(V::set(-7.0f), V::min(V::set(7.0f), up));
  return V::mul(V::mul(g, sigmoid(V::mul(V::set(1.702f), g))), V::add(u, V::set(1.0f)));
}

}  // namespace
}  // namespace sterna::cpu
