/// Row-wise float kernels: norms, activations, rotary positions, quantisation of activations. Contracts are per
/// element, so that neither the number of rows nor the level changes a bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/kernel_table.h"
#include "cpu/kernels/lanes.h"
#include "cpu/kernels/math.h"

namespace sterna::cpu {
namespace {

/// y = (x * 1/sqrt(mean(x^2) + eps)) * weight; squares are summed by fma into 16 lanes, then by the reduction tree.
void rms_norm(const float* x, const float* weight, float* y, std::int64_t n, float eps) {
  using V = Level;
  V::F squares = V::zero();
  for_lanes(n, [&](std::int64_t i, int count) {
    const V::F v = load_lanes(x + i, count);
    squares = V::fma(v, v, squares);
  });
  const float mean = V::sum(squares) / static_cast<float>(n);
  const V::F inverse = V::set(1.0f / __builtin_sqrtf(mean + eps));
  for_lanes(n, [&](std::int64_t i, int count) {
    V::F v = V::mul(load_lanes(x + i, count), inverse);
    if (weight != nullptr) v = V::mul(v, load_lanes(weight + i, count));
    store_lanes(y + i, v, count);
  });
}

/// y = (x - mean) * 1/sqrt(mean((x - mean)^2) + eps), then * weight and, by fma, + bias; both sums go by 16 lanes, then
/// by the reduction tree. `weight` and `bias` may be null; no bias without weight.
void layer_norm(const float* x, const float* weight, const float* bias, float* y, std::int64_t n, float eps) {
  using V = Level;
  V::F total = V::zero();
  for_lanes(n, [&](std::int64_t i, int count) { total = V::add(total, load_lanes(x + i, count)); });
  const V::F mean = V::set(V::sum(total) / static_cast<float>(n));
  V::F squares = V::zero();
  for_lanes(n, [&](std::int64_t i, int count) {
    const V::F v = V::keep_first(V::sub(load_lanes(x + i, count), mean), count, V::zero());
    squares = V::fma(v, v, squares);
  });
  const V::F inverse = V::set(1.0f / __builtin_sqrtf(V::sum(squares) / static_cast<float>(n) + eps));
  for_lanes(n, [&](std::int64_t i, int count) {
    V::F v = V::mul(V::sub(load_lanes(x + i, count), mean), inverse);
    if (bias != nullptr) {
      v = V::fma(v, load_lanes(weight + i, count), load_lanes(bias + i, count));
    } else if (weight != nullptr) {
      v = V::mul(v, load_lanes(weight + i, count));
    }
    store_lanes(y + i, v, count);
  });
}

/// Two int16 in one word.
inline std::int32_t pair(std::int32_t low, std::int32_t high) {
  return static_cast<std::int32_t>((static_cast<std::uint32_t>(low) & 0xFFFFu) |
                                   (static_cast<std::uint32_t>(high) << 16));
}

/// Scale = largest |x| of the block / 127, code = x * (127 / largest), to the nearest, ties to even, within +-127. A
/// block whose scale is below 2^-126 becomes zeros with scale 0. The largest is taken over bit patterns, so that a NaN
/// wins everywhere alike and ends up in the scale.
template <bool for_gemm>
void quantize(const float* x, std::int64_t k, std::int64_t block, std::int64_t scale_every, const ActivationTile& tile,
              int row) {
  using V = Level;
  const std::int64_t rows = tile.rows;
  std::int8_t* codes = tile.codes + 4 * row;
  float* scales = tile.scales + row;
  float* scaled_sums = tile.scaled_sums + row;
  std::int32_t* sums16 = tile.sums16 + row;
  std::int32_t* sums32 = tile.sums32 + row;
  std::int32_t* pairs32 = tile.pairs32 + row;
  std::int32_t even_sum = 0;
  for (std::int64_t begin = 0; begin < k; begin += block) {
    V::I largest = V::izero();
    for (std::int64_t i = begin; i < begin + block; i += 16) {
      largest = V::imax(largest, V::iand(V::bits(V::load(x + i)), V::iset(0x7FFFFFFF)));
    }
    const float magnitude = __builtin_bit_cast(float, V::ilargest(largest));
    float scale = magnitude / 127.0f;
    float inverse = 0.0f;
    if (scale < 0x1p-126f) {
      scale = 0.0f;
    } else {
      inverse = 127.0f / magnitude;
    }
    for (std::int64_t i = 0; i < block; i += scale_every, scales += rows) *scales = scale;
    for (std::int64_t i = begin; i < begin + block; i += 32) {
      V::I halves[2];
      alignas(16) std::int8_t bytes[32];
      for (int half = 0; half < 2; ++half) {
        const V::I rounded = V::round(V::mul(V::load(x + i + 16 * half), V::set(inverse)));
        halves[half] = V::imin(V::imax(rounded, V::iset(-127)), V::iset(127));
        V::store_s8(bytes + 16 * half, halves[half]);
      }
      for (int c = 0; c < 8; ++c, codes += 4 * rows) {
        std::uint32_t four;
        std::memcpy(&four, bytes + 4 * c, 4);
        if constexpr (for_gemm) four ^= 0x80808080u;  // + 128
        std::memcpy(codes, &four, 4);
      }
      std::int32_t sums[2];
      V::isum2(halves[0], halves[1], sums);
      const std::int32_t sum32 = sums[0] + sums[1];
      *scaled_sums = static_cast<float>(sum32) * scale;
      scaled_sums += rows;
      if constexpr (for_gemm) {
        *sums16 = pair(sums[0], sums[1]);
        sums16 += rows;
        const bool is_even = i % 64 == 0;
        if (is_even) even_sum = sum32;
        *pairs32 = pair(even_sum, is_even ? 0 : sum32);
        pairs32 += is_even ? 0 : rows;
      } else {
        sums16[0] = sums[0];
        sums16[rows] = sums[1];
        sums16 += 2 * rows;
        *sums32 = sum32;
        sums32 += rows;
      }
    }
  }
}

void add(const float* a, const float* b, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) {
    store_lanes(y + i, Level::add(load_lanes(a + i, count), load_lanes(b + i, count)), count);
  });
}

void mul(const float* a, const float* b, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) {
    store_lanes(y + i, Level::mul(load_lanes(a + i, count), load_lanes(b + i, count)), count);
  });
}

void scale(const float* x, float factor, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) {
    store_lanes(y + i, Level::mul(load_lanes(x + i, count), Level::set(factor)), count);
  });
}

/// Products are summed by fma into 16 lanes, then by the reduction tree.
void lora_down(const float* x, const float* a, std::int64_t n, std::int64_t r, float factor, float* t) {
  using V = Level;
  for (std::int64_t j = 0; j < r; ++j, a += n) {
    V::F sum = V::zero();
    for_lanes(
        n, [&](std::int64_t i, int count) { sum = V::fma(load_lanes(x + i, count), load_lanes(a + i, count), sum); });
    t[j] = V::sum(sum) * factor;
  }
}

void lora_up(const float* t, std::int64_t r, const float* b, std::int64_t stride, float* y, std::int64_t n) {
  using V = Level;
  for_lanes(n, [&](std::int64_t i, int count) {
    V::F sum = load_lanes(y + i, count);
    for (std::int64_t j = 0; j < r; ++j) sum = V::fma(V::set(t[j]), load_lanes(b + j * stride + i, count), sum);
    store_lanes(y + i, sum, count);
  });
}

/// x within -limit .. limit; a NaN stays one.
void clamp(const float* x, float limit, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) {
    const Level::F below = Level::min(Level::set(limit), load_lanes(x + i, count));
    store_lanes(y + i, Level::max(Level::set(-limit), below), count);
  });
}

template <class Kind>
void activation(const float* x, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) { store_lanes(y + i, Kind::apply(load_lanes(x + i, count)), count); });
}

/// y = activation(gate) * up, or what stands for it
template <class Kind>
void glu(const float* gate, const float* up, float* y, std::int64_t n) {
  for_lanes(n, [&](std::int64_t i, int count) {
    store_lanes(y + i, apply_gate<Kind>(load_lanes(gate + i, count), load_lanes(up + i, count)), count);
  });
}

/// Gate as it is; `finish` with this kind has no up.
struct NoActivation {};

template <class Kind>
void finish(const FinishArgs& a) {
  constexpr bool gated = !__is_same(Kind, NoActivation);
  const float* gate = a.gate;
  const float* up = a.up;
  const float* residual = a.residual;
  float* y = a.y;
  for (int row = 0; row < a.rows; ++row) {
    for_lanes(a.count, [&](std::int64_t i, int count) {
      Level::F v = Level::load(gate + i);
      if (a.bias != nullptr) v = Level::add(v, load_lanes(a.bias + i, count));
      if constexpr (gated) {
        Level::F factor = Level::load(up + i);
        if (a.up_bias != nullptr) factor = Level::add(factor, load_lanes(a.up_bias + i, count));
        v = apply_gate<Kind>(v, factor);
      }
      if (residual != nullptr) v = Level::add(v, load_lanes(residual + i, count));
      store_lanes(y + i, v, count);
    });
    gate += a.width;
    up += gated ? a.width : 0;
    if (residual != nullptr) residual += a.residual_stride;
    y += a.y_stride;
  }
}

/// (a, b) -> (a cos - b sin, b cos + a sin), each as one product and one fma.
void rope(float* x, int num_heads, int head_dim, int rotary_dim, bool interleaved, const float* cosines,
          const float* sines) {
  using V = Level;
  const int half = rotary_dim / 2;
  for (int h = 0; h < num_heads; ++h, x += head_dim) {
    if (interleaved) {
      for (int i = 0; i < half; ++i) {
        const float a = x[2 * i];
        const float b = x[2 * i + 1];
        x[2 * i] = __builtin_fmaf(a, cosines[i], -(b * sines[i]));
        x[2 * i + 1] = __builtin_fmaf(b, cosines[i], a * sines[i]);
      }
      continue;
    }
    for_lanes(half, [&](std::int64_t i, int count) {
      const V::F c = load_lanes(cosines + i, count);
      const V::F s = load_lanes(sines + i, count);
      const V::F a = load_lanes(x + i, count);
      const V::F b = load_lanes(x + half + i, count);
      store_lanes(x + i, V::fma(a, c, V::sub(V::zero(), V::mul(b, s))), count);
      store_lanes(x + half + i, V::fma(b, c, V::mul(a, s)), count);
    });
  }
}

void to_half(const float* x, std::uint16_t* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) Level::store_half(y + i, Level::load(x + i));
  if (i < n) {
    alignas(64) std::uint16_t tail[16];
    Level::store_half(tail, Level::load_partial(x + i, static_cast<int>(n - i)));
    std::memcpy(y + i, tail, static_cast<std::size_t>(n - i) * 2);
  }
}

}  // namespace
}  // namespace sterna::cpu
