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
static inline Vec halves_at(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
static inline __m256i bytes_of(const Ints* x) {  // of 32 numbers
    return _mm256_set_m128i(_mm512_cvtepi32_epi8(x[1]), _mm512_cvtepi32_epi8(x[0]));
}
static inline Ints size_bits(Vec x) { return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff)); }
static inline Ints larger(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
static inline __m128i largest_of_each(const Ints* x) {  // of four vectors
    Ints a = larger(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    Ints b = larger(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    Ints all = larger(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    __m256i half = _mm256_max_epi32(_mm512_castsi512_si256(all), _mm512_extracti64x4_epi64(all, 1));
    return _mm_max_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#else
using Ints = __m256i;
static inline Ints ints_at(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
static inline Ints low_nibbles(Ints x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }
static inline Ints high_nibbles(Ints x) { return _mm256_and_si256(_mm256_srli_epi16(x, 4), _mm256_set1_epi8(15)); }
static inline Vec to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
static inline Ints to_ints(Vec x) { return _mm256_cvtps_epi32(x); }
static inline Ints plus(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
static inline Vec halves_at(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
static inline __m256i bytes_of(const Ints* x) {
    __m256i mixed = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
    return _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));  // packs goes by 128 bits
}
static inline Ints size_bits(Vec x) { return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff)); }
static inline Ints larger(Ints a, Ints b) { return _mm256_max_epi32(a, b); }
static inline __m128i largest_of_each(const Ints* x) {
    Ints a = larger(_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
    Ints b = larger(_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
    Ints all = larger(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    return _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
#endif

static inline __m128i sums_of_bytes(const __m256i* x) {  // signed, of four times 32
    const __m256i bias = _mm256_set1_epi8(-128), none = _mm256_setzero_si256();
    __m256i a = _mm256_sad_epu8(_mm256_xor_si256(x[0], bias), none), b = _mm256_sad_epu8(_mm256_xor_si256(x[1], bias), none);
    __m256i c = _mm256_sad_epu8(_mm256_xor_si256(x[2], bias), none), d = _mm256_sad_epu8(_mm256_xor_si256(x[3], bias), none);
    __m256i ab = _mm256_or_si256(a, _mm256_slli_epi64(b, 32)), cd = _mm256_or_si256(c, _mm256_slli_epi64(d, 32));
    __m256i all = _mm256_add_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
    __m128i half = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    return _mm_sub_epi32(half, _mm_set1_epi32(32 * 128));
}

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
