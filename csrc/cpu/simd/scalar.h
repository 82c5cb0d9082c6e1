/// The vector vocabulary in plain C++: the definition that every other level must equal bit for bit.
///
/// One virtual width everywhere: F is 16 floats, I is 16 int32, B is 64 bytes (byte 4 * i + j belongs to lane i). A
/// level says how it does each word; kernels are written once over these words.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "base/half.h"

namespace sterna::cpu {
namespace {

struct Level {
  static constexpr const char* kName = "scalar";
  static constexpr int kTileRows = 2;  // token rows that one pass over a weight panel serves
  static constexpr int kFewRows = 16;
  static constexpr int kAttentionQueries = 1;      // queries that one pass over a key tile serves
  static constexpr int kWideBias = 128;            // bias that dot_wide leaves in the sum
  static constexpr bool kDotTakesAnyByte = false;  // whether dot sums codes up to 255 exactly, beyond its promise

  struct F {
    float v[16];
  };
  struct I {
    std::int32_t v[16];
  };
  struct B {
    std::uint8_t v[64];
  };

  template <class R, class Fn>
  static R lanes(Fn fn) {
    R r;
    for (int i = 0; i < 16; ++i) r.v[i] = fn(i);
    return r;
  }
  template <class Fn>
  static B bytes(Fn fn) {
    B r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<std::uint8_t>(fn(i));
    return r;
  }

  static F zero() { return set(0.0f); }
  static F set(float x) {
    return lanes<F>([=](int) { return x; });
  }
  static F load(const float* p) {
    return lanes<F>([=](int i) { return p[i]; });
  }
  /// The first n floats, zeros behind them; reads no further.
  static F load_partial(const float* p, int n) {
    return lanes<F>([=](int i) { return i < n ? p[i] : 0.0f; });
  }
  static F load_half(const std::uint16_t* p) {
    return lanes<F>([=](int i) { return half_to_float(p[i]); });
  }
  static F load_bfloat16(const std::uint16_t* p) {
    return lanes<F>([=](int i) { return bfloat16_to_float(p[i]); });
  }
  static void store(float* p, F a) { std::memcpy(p, a.v, sizeof a.v); }
  static void store_partial(float* p, F a, int n) { std::memcpy(p, a.v, sizeof(float) * static_cast<std::size_t>(n)); }
  static void store_half(std::uint16_t* p, F a) {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(a.v[i]);
  }
  static F add(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] + b.v[i]; });
  }
  static F sub(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] - b.v[i]; });
  }
  static F mul(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] * b.v[i]; });
  }
  static F div(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] / b.v[i]; });
  }
  /// a * b + c, rounded once.
  static F fma(F a, F b, F c) {
    return lanes<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
  }
  /// b where the comparison is false, a NaN included (as x86 has it).
  static F max(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static F min(F a, F b) {
    return lanes<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  /// Lanes below n from a, the others from rest.
  static F keep_first(F a, int n, F rest) {
    return lanes<F>([&](int i) { return i < n ? a.v[i] : rest.v[i]; });
  }
  /// Lanes from `first` up from a, the others from rest.
  static F keep_last_from(F a, int first, F rest) {
    return lanes<F>([&](int i) { return i >= first ? a.v[i] : rest.v[i]; });
  }
  /// The one reduction tree: lanes i and i + 8, then i + 4, i + 2, i + 1.
  static float sum(F a) {
    for (int half = 8; half >= 1; half /= 2) {
      for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
    }
    return a.v[0];
  }
  static float largest(F a) {
    for (int half = 8; half >= 1; half /= 2) {
      for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    }
    return a.v[0];
  }

  static I izero() { return iset(0); }
  static I iset(std::int32_t x) {
    return lanes<I>([=](int) { return x; });
  }
  static I iload(const std::int32_t* p) {
    return lanes<I>([=](int i) { return p[i]; });
  }
  static void istore(std::int32_t* p, I a) { std::memcpy(p, a.v, sizeof a.v); }
  /// 16 bytes, widened.
  static I iload_u8(const std::uint8_t* p) {
    return lanes<I>([=](int i) { return static_cast<std::int32_t>(p[i]); });
  }
  static I iload_s8(const std::uint8_t* p) {
    return lanes<I>([=](int i) { return static_cast<std::int32_t>(static_cast<std::int8_t>(p[i])); });
  }
  static std::int32_t wrap(std::int64_t x) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(x)); }
  static I iadd(I a, I b) {
    return lanes<I>([&](int i) { return wrap(std::int64_t{a.v[i]} + b.v[i]); });
  }
  static I isub(I a, I b) {
    return lanes<I>([&](int i) { return wrap(std::int64_t{a.v[i]} - b.v[i]); });
  }
  static I imul(I a, I b) {
    return lanes<I>([&](int i) { return wrap(std::int64_t{a.v[i]} * b.v[i]); });
  }
  static I iand(I a, I b) {
    return lanes<I>([&](int i) { return a.v[i] & b.v[i]; });
  }
  static I imax(I a, I b) {
    return lanes<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static I imin(I a, I b) {
    return lanes<I>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  template <int n>
  static I shift_left(I a) {
    return lanes<I>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) << n); });
  }
  template <int n>
  static I shift_right(I a) {  // zeros come in
    return lanes<I>([&](int i) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) >> n); });
  }
  template <int n>
  static I shift_right_signed(I a) {
    return lanes<I>([&](int i) { return a.v[i] >> n; });
  }
  /// The sums of a's and of b's lanes.
  static void isum2(I a, I b, std::int32_t* sums) {
    std::int64_t of_a = 0;
    std::int64_t of_b = 0;
    for (int i = 0; i < 16; ++i) {
      of_a += a.v[i];
      of_b += b.v[i];
    }
    sums[0] = wrap(of_a);
    sums[1] = wrap(of_b);
  }
  static std::int32_t ilargest(I a) {
    std::int32_t m = a.v[0];
    for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
  }
  static I bits(F a) { return std::bit_cast<I>(a); }
  static F from_bits(I a) { return std::bit_cast<F>(a); }
  static F to_float(I a) {
    return lanes<F>([&](int i) { return static_cast<float>(a.v[i]); });
  }
  /// To the nearest integer, ties to even; what does not fit becomes INT32_MIN.
  static I round(F a) {
    return lanes<I>([&](int i) {
      const float r = std::nearbyint(a.v[i]);
      return r >= -2147483648.0f && r < 2147483648.0f ? static_cast<std::int32_t>(r) : INT32_MIN;
    });
  }
  /// 16 lanes within -128..127 as bytes.
  static void store_s8(std::int8_t* p, I a) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<std::int8_t>(a.v[i]);
  }

  static B bload(const std::uint8_t* p) {
    return bytes([=](int i) { return p[i]; });
  }
  static void bstore(std::uint8_t* p, B a) { std::memcpy(p, a.v, sizeof a.v); }
  static B bset(std::uint8_t x) {
    return bytes([=](int) { return x; });
  }
  static B band(B a, B b) {
    return bytes([&](int i) { return a.v[i] & b.v[i]; });
  }
  static B bor(B a, B b) {
    return bytes([&](int i) { return a.v[i] | b.v[i]; });
  }
  static B badd(B a, B b) {
    return bytes([&](int i) { return a.v[i] + b.v[i]; });
  }
  static B subtract_saturated(B a, B b) {
    return bytes([&](int i) { return a.v[i] > b.v[i] ? a.v[i] - b.v[i] : 0; });
  }
  static B bmin(B a, B b) {
    return bytes([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  /// Shifts of bytes; bits that other levels let in from the neighbouring byte must be masked off by the caller.
  template <int n>
  static B bits_right(B a) {
    return bytes([&](int i) { return a.v[i] >> n; });
  }
  template <int n>
  static B bits_left(B a) {
    return bytes([&](int i) { return a.v[i] << n; });
  }
  /// A table of 16 bytes, looked up by bytes below 16.
  static B table(const std::int8_t* entries) {
    return bytes([=](int i) { return entries[i % 16]; });
  }
  static B lookup(B table, B index) {
    return bytes([&](int i) { return table.v[index.v[i] & 15]; });
  }
  /// Four activations, the same in every lane.
  static I broadcast4(const std::int8_t* y) {
    std::int32_t four;
    std::memcpy(&four, y, 4);
    return iset(four);
  }
  /// acc + the dot product of four unsigned codes (at most 127) and four activations, lane by lane.
  static I dot(I acc, B w, I y) {
    const auto activations = std::bit_cast<B>(y);
    return lanes<I>([&](int i) {
      std::int32_t s = acc.v[i];
      for (int j = 4 * i; j < 4 * i + 4; ++j) s += w.v[j] * static_cast<std::int8_t>(activations.v[j]);
      return s;
    });
  }
  /// The same for codes up to 255, biased by 128; the sum keeps kWideBias of that bias.
  static I dot_wide(I acc, B w, I y) { return dot(acc, w, y); }
};

}  // namespace
}  // namespace sterna::cpu
