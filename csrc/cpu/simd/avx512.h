/// The vector vocabulary in AVX-512 (F, BW, DQ, VL, VNNI, VBMI). See scalar.h for what each word means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sterna::cpu {
namespace {

struct Level {
  static constexpr const char* kName = "avx512";
  static constexpr int kTileRows = 8;
  static constexpr int kFewRows = 40;
  static constexpr int kAttentionQueries = 12;
  static constexpr int kWideBias = 128;
  static constexpr bool kDotTakesAnyByte = true;
  static constexpr int kGemmPanels = 2;
  static constexpr int kGemmRows = 6;

  using F = __m512;
  using I = __m512i;
  using B = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_partial(const float* p, int n) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1u), p);
  }
  static F load_half(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bfloat16(const std::uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static void store_partial(float* p, F v, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1u), v);
  }
  static void store_half(std::uint16_t* p, F v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F keep_first(F v, int n, F rest) {
    return _mm512_mask_mov_ps(rest, static_cast<__mmask16>((1u << n) - 1u), v);
  }
  static F keep_last_from(F v, int first, F rest) {
    return _mm512_mask_mov_ps(rest, static_cast<__mmask16>(0xFFFFu << first), v);
  }
  static float sum(F v) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
  static float largest(F v) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
  }

  static I izero() { return _mm512_setzero_si512(); }
  static I iset(std::int32_t x) { return _mm512_set1_epi32(x); }
  static I iload(const std::int32_t* p) { return _mm512_loadu_si512(p); }
  static void istore(std::int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static I iload_u8(const std::uint8_t* p) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I iload_s8(const std::uint8_t* p) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
  static I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static I imul(I a, I b) { return _mm512_mullo_epi32(a, b); }
  static I iand(I a, I b) { return _mm512_and_si512(a, b); }
  static I imax(I a, I b) { return _mm512_max_epi32(a, b); }
  static I imin(I a, I b) { return _mm512_min_epi32(a, b); }
  template <int n>
  static I shift_left(I a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  static I shift_right(I a) {
    return _mm512_srli_epi32(a, n);
  }
  template <int n>
  static I shift_right_signed(I a) {
    return _mm512_srai_epi32(a, n);
  }
  /// The sums of a's and of b's lanes.
  static void isum2(I a, I b, std::int32_t* sums) {
    const __m512i pairs = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m256i c = _mm256_add_epi32(_mm512_castsi512_si256(pairs), _mm512_extracti64x4_epi64(pairs, 1));
    const __m128i d = _mm_add_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(sums), _mm_add_epi32(d, _mm_unpackhi_epi64(d, d)));
  }
  static std::int32_t ilargest(I v) { return _mm512_reduce_max_epi32(v); }
  static I bits(F v) { return _mm512_castps_si512(v); }
  static F from_bits(I v) { return _mm512_castsi512_ps(v); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }
  static void store_s8(std::int8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }

  static B bload(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static void bstore(std::uint8_t* p, B v) { _mm512_storeu_si512(p, v); }
  static B bset(std::uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static B band(B a, B b) { return _mm512_and_si512(a, b); }
  static B bor(B a, B b) { return _mm512_or_si512(a, b); }
  static B badd(B a, B b) { return _mm512_add_epi8(a, b); }
  static B subtract_saturated(B a, B b) { return _mm512_subs_epu8(a, b); }
  static B bmin(B a, B b) { return _mm512_min_epu8(a, b); }
  template <int n>
  static B bits_right(B a) {
    return n == 0 ? a : _mm512_srli_epi16(a, n);
  }
  template <int n>
  static B bits_left(B a) {
    return n == 0 ? a : _mm512_slli_epi16(a, n);
  }
  static B table(const std::int8_t* entries) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
  }
  static B lookup(B table, B index) { return _mm512_shuffle_epi8(table, index); }
  static I broadcast4(const std::int8_t* y) {
    std::int32_t four;
    std::memcpy(&four, y, 4);
    return _mm512_set1_epi32(four);
  }
  static I dot(I acc, B w, I y) { return _mm512_dpbusd_epi32(acc, w, y); }
  static I dot_pairs(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static I dot_wide(I acc, B w, I y) { return _mm512_dpbusd_epi32(acc, w, y); }
};

}  // namespace
}  // namespace sterna::cpu
