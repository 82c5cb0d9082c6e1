/// Sine and cosine of our own, so that no library decides about a bit; CPU and GPU share them.
#pragma once

#include <cstdint>

namespace sterna {
namespace sine_detail {

// pi / 2 in three parts of 33 bits each (fdlibm, e_rem_pio2.c): products with a quadrant number below 2^20 are exact.
inline constexpr double kHalfPi1 = 1.57079632673412561417e+00;
inline constexpr double kHalfPi2 = 6.07710050630396597660e-11;
inline constexpr double kHalfPi3 = 2.02226624879595063154e-21;
inline constexpr double kTwoOverPi = 6.36619772367581382433e-01;
// Adding and subtracting it rounds to the nearest integer.
inline constexpr double kRounder = 6755399441055744.0;

// Taylor polynomials: on [-pi/4, pi/4] the first omitted term is below 1e-16.
constexpr double sine_near_zero(double r) {
  const double s = r * r;
  double p = -7.647163731819816e-13;  // -1/15!
  p = p * s + 1.6059043836821613e-10;
  p = p * s - 2.505210838544172e-08;
  p = p * s + 2.7557319223985893e-06;
  p = p * s - 1.984126984126984e-04;
  p = p * s + 8.333333333333333e-03;
  p = p * s - 1.6666666666666666e-01;
  return r + r * s * p;
}

constexpr double cosine_near_zero(double r) {
  const double s = r * r;
  double p = 4.779477332387385e-14;  // 1/16!
  p = p * s - 1.1470745597729725e-11;
  p = p * s + 2.08767569878681e-09;
  p = p * s - 2.755731922398589e-07;
  p = p * s + 2.48015873015873e-05;
  p = p * s - 1.3888888888888889e-03;
  p = p * s + 4.1666666666666664e-02;
  return 1.0 - 0.5 * s + s * s * p;
}

}  // namespace sine_detail

struct SineCosine {
  double sine, cosine;
};

/// Of an angle up to 1e8, to about 2^-52.
constexpr SineCosine sine_cosine(float angle) {
  using namespace sine_detail;
  const double x = static_cast<double>(angle);
  const double quadrant = (x * kTwoOverPi + kRounder) - kRounder;
  const double r = ((x - quadrant * kHalfPi1) - quadrant * kHalfPi2) - quadrant * kHalfPi3;
  const double s = sine_near_zero(r);
  const double c = cosine_near_zero(r);
  const auto turn = static_cast<std::int64_t>(quadrant) & 3;
  return {turn == 0 ? s : turn == 1 ? c : turn == 2 ? -s : -c, turn == 0 ? c : turn == 1 ? -s : turn == 2 ? -c : s};
}

}  // namespace sterna
