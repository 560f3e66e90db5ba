// Vectors of 32-bit integers, WIDTH at a time, and dot products of the four bytes in each: what quantised products are made of.
#pragma once
#include "vector.h"

#if defined(__AVX512F__)
using Ints = __m512i;
static inline Ints ints_at(const void* p) { return _mm512_loadu_si512(p); }
static inline Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
static inline Ints low_nibbles(Ints x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
static inline Ints high_nibbles(Ints x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }
static inline Vec to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
static inline Ints to_ints(Vec x) { return _mm512_cvtps_epi32(x); }  // to nearest, ties to even
static inline Ints plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
static inline int32_t sum_of(Ints x) { return _mm512_reduce_add_epi32(x); }
static inline Vec halves_at(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
static inline void store_low_bytes(void* p, Ints x) { _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x)); }
static inline bool any_nan(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
#else
using Ints = __m256i;
static inline Ints ints_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
static inline Ints low_nibbles(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline Ints high_nibbles(Ints x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
static inline Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
static inline Ints to_ints(Vec x) { return _mm256_cvtps_epi32(x); }
static inline Ints plus(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
static inline int32_t sum_of(Ints x) {
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
}
static inline Vec halves_at(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
static inline void store_low_bytes(void* p, Ints x) {
    __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64(static_cast<__m128i*>(p), _mm_packs_epi16(shorts, shorts));
}
static inline bool any_nan(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)) != 0; }
#endif

// Bytes q + 128 of a weight, ready to be multiplied by signed bytes. Where the machine multiplies unsigned by signed bytes into 32
// bits, the sum is too large by BIAS times the sum of the signed bytes; elsewhere 16 bits must do, which magnitudes of at most 128 allow.
#if defined(__AVX512VNNI__)
constexpr int32_t BIAS = 128;
struct SignedBytes {
    Ints biased;
    explicit SignedBytes(Ints x) : biased(x) {}
    Ints dot(Ints sum, Ints x) const { return _mm512_dpbusd_epi32(sum, biased, x); }
};
#elif defined(__AVX512F__)
constexpr int32_t BIAS = 0;
struct SignedBytes {
    Ints magnitude;
    __mmask64 negative;
    explicit SignedBytes(Ints x) {
        x = _mm512_xor_si512(x, _mm512_set1_epi8(-128));
        magnitude = _mm512_abs_epi8(x);
        negative = _mm512_movepi8_mask(x);
    }
    Ints dot(Ints sum, Ints x) const {
        Ints turned = _mm512_mask_sub_epi8(x, negative, _mm512_setzero_si512(), x);
        return plus(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(magnitude, turned), _mm512_set1_epi16(1)));
    }
};
#else
constexpr int32_t BIAS = 0;
struct SignedBytes {
    Ints magnitude, value;
    explicit SignedBytes(Ints x) {
        value = _mm256_xor_si256(x, _mm256_set1_epi8(-128));
        magnitude = _mm256_abs_epi8(value);
    }
    Ints dot(Ints sum, Ints x) const {
        Ints turned = _mm256_sign_epi8(x, value);
        return plus(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, turned), _mm256_set1_epi16(1)));
    }
};
#endif

// Sums of nibbles times signed bytes over one group of 32: without the 32-bit instruction, 8 sums of 4 products fit in two of 16 bits.
#if defined(__AVX512VNNI__)
static inline Ints begin_nibbles(Ints start) { return start; }
static inline Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return _mm512_dpbusd_epi32(sum, nibbles, x); }
static inline Ints end_nibbles(Ints sum, Ints) { return sum; }
#elif defined(__AVX512F__)
static inline Ints begin_nibbles(Ints) { return _mm512_setzero_si512(); }
static inline Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return _mm512_add_epi16(sum, _mm512_maddubs_epi16(nibbles, x)); }
static inline Ints end_nibbles(Ints sum, Ints start) { return plus(start, _mm512_madd_epi16(sum, _mm512_set1_epi16(1))); }
#else
static inline Ints begin_nibbles(Ints) { return _mm256_setzero_si256(); }
static inline Ints dot_nibbles(Ints sum, Ints nibbles, Ints x) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(nibbles, x)); }
static inline Ints end_nibbles(Ints sum, Ints start) { return plus(start, _mm256_madd_epi16(sum, _mm256_set1_epi16(1))); }
#endif
