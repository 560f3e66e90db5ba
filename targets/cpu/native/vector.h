// Vectors of floats, WIDTH at a time: 16 with AVX-512, 8 with AVX2. Kernels are written once against this.
#pragma once
#include <immintrin.h>
#include "abi.h"

using bf16 = uint16_t;

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
using Vec = __m512;
static inline Vec zero() { return _mm512_setzero_ps(); }
static inline Vec all(float x) { return _mm512_set1_ps(x); }
static inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
static inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
static inline __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }
static inline Vec load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
static inline void store_some(float* p, Vec x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x); }
static inline Vec widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
static inline __m256i narrow(Vec x) {  // to nearest, ties to even
#if defined(__AVX512BF16__)
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
#else
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
#endif
}
static inline Vec load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
static inline void store(bf16* p, Vec x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x)); }
static inline Vec load_some(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first_lanes(n), p)); }
static inline void store_some(bf16* p, Vec x, int n) { _mm256_mask_storeu_epi16(p, first_lanes(n), narrow(x)); }
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline Vec vmax(Vec a, Vec b) { return _mm512_max_ps(a, b); }
static inline Vec vmin(Vec a, Vec b) { return _mm512_min_ps(a, b); }
static inline Vec vsqrt(Vec a) { return _mm512_sqrt_ps(a); }
static inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
static inline float largest(Vec a) { return _mm512_reduce_max_ps(a); }
static inline Vec to_whole(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vec times_power_of_two(Vec a, Vec whole) { return _mm512_scalef_ps(a, whole); }
#else
constexpr int WIDTH = 8;
using Vec = __m256;
static inline Vec zero() { return _mm256_setzero_ps(); }
static inline Vec all(float x) { return _mm256_set1_ps(x); }
static inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
static inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
static inline __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline Vec load_some(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
static inline void store_some(float* p, Vec x, int n) { _mm256_maskstore_ps(p, first_lanes(n), x); }
static inline Vec widen(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
static inline __m128i narrow(Vec x) {  // to nearest, ties to even
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
    rounded = _mm256_srli_epi32(rounded, 16);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(rounded, rounded), 0x08));
}
static inline Vec load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
static inline void store(bf16* p, Vec x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(x)); }
static inline Vec load_some(const bf16* p, int n) {
    alignas(16) bf16 part[8] = {0};
    for (int i = 0; i < n; i++) part[i] = p[i];
    return load(part);
}
static inline void store_some(bf16* p, Vec x, int n) {
    alignas(16) bf16 part[8];
    store(part, x);
    for (int i = 0; i < n; i++) p[i] = part[i];
}
static inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
static inline Vec vmax(Vec a, Vec b) { return _mm256_max_ps(a, b); }
static inline Vec vmin(Vec a, Vec b) { return _mm256_min_ps(a, b); }
static inline Vec vsqrt(Vec a) { return _mm256_sqrt_ps(a); }
static inline float sum(Vec a) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
static inline float largest(Vec a) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
static inline Vec to_whole(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline Vec times_power_of_two(Vec a, Vec whole) {  // in two halves, so that results below 2^-126 come out right too
    __m256i power = _mm256_cvtps_epi32(whole), half = _mm256_srai_epi32(power, 1), bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(power, half);
    Vec first = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
    Vec second = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
    return a * first * second;
}
#endif

static inline float to_float(float x) { return x; }
static inline float to_float(bf16 x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}
static inline void put(float* p, float x) { *p = x; }
static inline void put(bf16* p, float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    *p = x != x ? static_cast<bf16>(bits >> 16 | 0x40) : static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The value as the type T holds it.
template <class T> static inline Vec rounded(Vec x);
template <> inline Vec rounded<float>(Vec x) { return x; }
template <> inline Vec rounded<bf16>(Vec x) { return widen(narrow(x)); }

// e^x to about 1 ulp: x = n ln 2 + r, a polynomial of degree 6 in r (Cephes' coefficients), then times 2^n.
static inline Vec exponential(Vec x) {
    Vec bounded = vmin(vmax(x, all(-104.0f)), all(88.72f));
    Vec n = to_whole(bounded * all(1.44269504088896341f));
    Vec r = fma(n, all(-0.693359375f), bounded);
    r = fma(n, all(2.12194440e-4f), r);
    Vec p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = fma(p, r * r, r + all(1.0f));
    return times_power_of_two(p, n);
}

// The value as it is here and now: not fused with the sum that follows it, not computed later.
static inline Vec settled(Vec x) {
    __asm__ volatile("" : "+v"(x));
    return x;
}
