/// The vector vocabulary in AVX2 with FMA and F16C: a vector of 16 is two registers. See scalar.h for what each word
/// means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace sterna::cpu {
namespace {

struct Level {
  static constexpr const char* kName = "avx2";
  static constexpr int kTileRows = 4;
  static constexpr int kFewRows = 8;
  static constexpr int kAttentionQueries = 2;
  static constexpr int kWideBias = 0;
  static constexpr bool kDotTakesAnyByte = false;
  static constexpr int kGemmPanels = 1;
  static constexpr int kGemmRows = 3;

  struct F {
    __m256 lo, hi;
  };
  struct I {
    __m256i lo, hi;
  };
  using B = I;

  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static I lane_mask(int n) {  // all ones in the first n of 16 lanes
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i count = _mm256_set1_epi32(n);
    return {_mm256_cmpgt_epi32(count, lanes), _mm256_cmpgt_epi32(count, _mm256_add_epi32(lanes, _mm256_set1_epi32(8)))};
  }
  static F load_partial(const float* p, int n) {
    const I mask = lane_mask(n);
    return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
  }
  static F load_half(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static F load_bfloat16(const std::uint16_t* p) {
    const __m256i lo = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i hi = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  }
  static void store(float* p, F v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }
  static void store_partial(float* p, F v, int n) {
    const I mask = lane_mask(n);
    _mm256_maskstore_ps(p, mask.lo, v.lo);
    _mm256_maskstore_ps(p + 8, mask.hi, v.hi);
  }
  static void store_half(std::uint16_t* p, F v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                     _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
  static F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static F keep_first(F v, int n, F rest) {
    const I mask = lane_mask(n);
    return {_mm256_blendv_ps(rest.lo, v.lo, _mm256_castsi256_ps(mask.lo)),
            _mm256_blendv_ps(rest.hi, v.hi, _mm256_castsi256_ps(mask.hi))};
  }
  static F keep_last_from(F v, int first, F rest) { return keep_first(rest, first, v); }
  static float sum(F v) {
    const __m256 a = _mm256_add_ps(v.lo, v.hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
  }
  static float largest(F v) {
    const __m256 a = _mm256_max_ps(v.lo, v.hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_movehdup_ps(b)));
  }

  static I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I iset(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I iload(const std::int32_t* p) { return bload(reinterpret_cast<const std::uint8_t*>(p)); }
  static void istore(std::int32_t* p, I v) { bstore(reinterpret_cast<std::uint8_t*>(p), v); }
  static I iload_u8(const std::uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
  }
  static I iload_s8(const std::uint8_t* p) {  // two loads of 8 bytes: they widen on the way, without a shift
    return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
  }
  static I iadd(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
  static I isub(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
  static I imul(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
  static I iand(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  static I imax(I a, I b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
  static I imin(I a, I b) { return {_mm256_min_epi32(a.lo, b.lo), _mm256_min_epi32(a.hi, b.hi)}; }
  template <int n>
  static I shift_left(I a) {
    return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
  }
  template <int n>
  static I shift_right(I a) {
    return {_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)};
  }
  template <int n>
  static I shift_right_signed(I a) {
    return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
  }
  /// The sums of a's and of b's lanes.
  static void isum2(I a, I b, std::int32_t* sums) {
    const __m256i x = _mm256_add_epi32(a.lo, a.hi);
    const __m256i y = _mm256_add_epi32(b.lo, b.hi);
    const __m256i pairs = _mm256_add_epi32(_mm256_unpacklo_epi32(x, y), _mm256_unpackhi_epi32(x, y));
    const __m128i c = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(sums), _mm_add_epi32(c, _mm_unpackhi_epi64(c, c)));
  }
  static std::int32_t ilargest(I v) {
    const __m256i a = _mm256_max_epi32(v.lo, v.hi);
    __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(b, _mm_shuffle_epi32(b, 0xB1)));
  }
  static I bits(F v) { return {_mm256_castps_si256(v.lo), _mm256_castps_si256(v.hi)}; }
  static F from_bits(I v) { return {_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
  static F to_float(I v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
  static I round(F v) { return {_mm256_cvtps_epi32(v.lo), _mm256_cvtps_epi32(v.hi)}; }
  static void store_s8(std::int8_t* p, I v) {
    // Saturating packs work within 128-bit halves; the permutation puts the dwords back in order.
    const __m256i words = _mm256_packs_epi32(v.lo, v.hi);
    const __m256i bytes = _mm256_packs_epi16(words, words);
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(ordered));
  }

  static B bload(const std::uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static void bstore(std::uint8_t* p, B v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v.lo);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), v.hi);
  }
  static B bset(std::uint8_t x) {
    return {_mm256_set1_epi8(static_cast<char>(x)), _mm256_set1_epi8(static_cast<char>(x))};
  }
  static B band(B a, B b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
  static B bor(B a, B b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  static B badd(B a, B b) { return {_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi)}; }
  static B subtract_saturated(B a, B b) { return {_mm256_subs_epu8(a.lo, b.lo), _mm256_subs_epu8(a.hi, b.hi)}; }
  static B bmin(B a, B b) { return {_mm256_min_epu8(a.lo, b.lo), _mm256_min_epu8(a.hi, b.hi)}; }
  template <int n>
  static B bits_right(B a) {
    if constexpr (n == 0) return a;
    return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)};
  }
  template <int n>
  static B bits_left(B a) {
    if constexpr (n == 0) return a;
    return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)};
  }
  static B table(const std::int8_t* entries) {
    const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(entries)));
    return {v, v};
  }
  static B lookup(B table, B index) {
    return {_mm256_shuffle_epi8(table.lo, index.lo), _mm256_shuffle_epi8(table.hi, index.hi)};
  }
  static I broadcast4(const std::int8_t* y) {
    std::int32_t four;
    std::memcpy(&four, y, 4);
    const __m256i v = _mm256_set1_epi32(four);
    return {v, v};
  }
  static __m256i dot_half(__m256i acc, __m256i w, __m256i y) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, y), _mm256_set1_epi16(1)));
  }
  // Codes up to 127: two products of at most 127 * 127 fit 16 bits, so nothing saturates.
  static I dot(I acc, B w, I y) { return {dot_half(acc.lo, w.lo, y.lo), dot_half(acc.hi, w.hi, y.hi)}; }
  // |w - 128| <= 128 and |y| <= 127: two products are at most 32512. The sign moves to y, so the bias is gone.
  static __m256i dot_wide_half(__m256i acc, __m256i w, __m256i y) {
    const __m256i value = _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80)));
    return dot_half(acc, _mm256_abs_epi8(value), _mm256_sign_epi8(y, value));
  }
  static I dot_wide(I acc, B w, I y) { return {dot_wide_half(acc.lo, w.lo, y.lo), dot_wide_half(acc.hi, w.hi, y.hi)}; }
  // For gemm: y unsigned, w signed. Sums of pairs stay in 16 bits for a while, and go to 32 with their neighbours.
  static I add_pairs(I words, B y, B w) {
    return {_mm256_add_epi16(words.lo, _mm256_maddubs_epi16(y.lo, w.lo)),
            _mm256_add_epi16(words.hi, _mm256_maddubs_epi16(y.hi, w.hi))};
  }
  static I dot_pairs(I acc, I a, I b) {
    return {_mm256_add_epi32(acc.lo, _mm256_madd_epi16(a.lo, b.lo)),
            _mm256_add_epi32(acc.hi, _mm256_madd_epi16(a.hi, b.hi))};
  }
  static I add_words(I acc, I words) {
    const __m256i ones = _mm256_set1_epi16(1);
    return dot_pairs(acc, words, {ones, ones});
  }
  // w signed, of any size; y is activation + 128.
  static I dot_signed(I acc, B w, I y) {
    const __m256i activations = _mm256_xor_si256(y.lo, _mm256_set1_epi8(static_cast<char>(0x80)));
    return {dot_half(acc.lo, _mm256_abs_epi8(w.lo), _mm256_sign_epi8(activations, w.lo)),
            dot_half(acc.hi, _mm256_abs_epi8(w.hi), _mm256_sign_epi8(activations, w.hi))};
  }
};

}  // namespace
}  // namespace sterna::cpu
