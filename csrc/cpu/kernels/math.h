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

/// (e^2x - 1) / (e^2x + 1), written so that large |x| saturate at 1.
inline Level::F tanh(Level::F x) {
  using V = Level;
  const V::F t = V::sub(V::mul(V::set(2.0f), sigmoid(V::mul(V::set(2.0f), x))), V::set(1.0f));
  return t;
}

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

/// max(x, 0)^2
struct Relu2 {
  static Level::F apply(Level::F x) {
    const Level::F positive = Level::max(Level::zero(), x);
    return Level::mul(positive, positive);
  }
};

}  // namespace
}  // namespace sterna::cpu
