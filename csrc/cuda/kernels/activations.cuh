/// Activation functions and gates, as cpu/kernels/math.h has them: the same operations in the same order.
#pragma once

#include "cuda/kernels/device.cuh"

namespace sterna::cuda {

/// ln(1 + e^x) = max(x, 0) + ln(1 + u) with u = e^-|x|; ln(1 + u) = 2 artanh(u / (2 + u)), a series in at most 1/3.
__device__ inline float softplus(float x) {
  const float u = exponential(-fabsf(x));
  const float s = u / (2.0f + u);
  const float square = s * s;
  float p = 1.0f / 15;
  p = fmaf(p, square, 1.0f / 13);
  p = fmaf(p, square, 1.0f / 11);
  p = fmaf(p, square, 1.0f / 9);
  p = fmaf(p, square, 1.0f / 7);
  p = fmaf(p, square, 1.0f / 5);
  p = fmaf(p, square, 1.0f / 3);
  p = fmaf(p, square, 1.0f);
  return fmaf(s + s, p, 0.0f > x ? 0.0f : x);
}

/// x Phi(x), Phi the normal distribution function: e^(-x^2 / 2) times a polynomial in 1 / (1 + |x| / 4) is the tail
/// beyond |x|.
__device__ inline float gelu(float x) {
  const float t = 1.0f / fmaf(fabsf(x), 0.25f, 1.0f);
  float p = 3.458442539e-2f;
  p = fmaf(p, t, -1.996234357e-1f);
  p = fmaf(p, t, 4.030745924e-1f);
  p = fmaf(p, t, -3.442133963e-1f);
  p = fmaf(p, t, 3.134248555e-1f);
  p = fmaf(p, t, -2.519703656e-2f);
  p = fmaf(p, t, 1.232434437e-1f);
  p = fmaf(p, t, 9.445700049e-2f);
  p = fmaf(p, t, 1.002734751e-1f);
  p = fmaf(p, t, -2.394243165e-5f);
  const float tail = p * exponential(x * x * -0.5f);
  return x * (x < 0.0f ? tail : 1.0f - tail);
}

/// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), by way of tanh(u) = 2 sigmoid(2u) - 1.
__device__ inline float gelu_tanh(float x) {
  const float cubic = fmaf(0.044715f * (x * x), x, x);
  return x * sigmoid(1.5957691216f * cubic);
}

/// Comparisons are written so that a NaN stays one.
__device__ inline float activate(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::kSilu:
      return x * sigmoid(x);
    case ActivationKind::kGelu:
      return gelu(x);
    case ActivationKind::kGeluTanh:
      return gelu_tanh(x);
    case ActivationKind::kRelu:
      return 0.0f > x ? 0.0f : x;
    case ActivationKind::kRelu2: {
      const float positive = 0.0f > x ? 0.0f : x;
      return positive * positive;
    }
    case ActivationKind::kSigmoid:
      return sigmoid(x);
    case ActivationKind::kTanh:
      return tangent(x);
    case ActivationKind::kSoftplus:
      return softplus(x);
    case ActivationKind::kClampedSwiglu:  // a gate only
    case ActivationKind::kCount:
      break;
  }
  return x;
}

/// activation(gate) * up; of the clamped one (gpt-oss) g sigmoid(1.702 g) (u + 1) with g = min(gate, 7) and u = up
/// within -7 .. 7.
__device__ inline float gate(ActivationKind kind, float gate, float up) {
  if (kind != ActivationKind::kClampedSwiglu) return activate(kind, gate) * up;
  const float g = 7.0f < gate ? 7.0f : gate;
  const float below = 7.0f < up ? 7.0f : up;
  const float u = -7.0f > below ? -7.0f : below;
  return g * sigmoid(1.702f * g) * (u + 1.0f);
}

}  // namespace sterna::cuda
