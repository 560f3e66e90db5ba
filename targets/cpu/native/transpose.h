// Transposing WIDTH x WIDTH elements of 32 bits, and sums of vectors' lanes that end up side by side.
#pragma once
#include "vector.h"

#if defined(__AVX512F__)
static inline __m512d as_pairs(Vec x) { return _mm512_castps_pd(x); }
static inline Vec low_pairs(Vec a, Vec b) { return _mm512_castpd_ps(_mm512_unpacklo_pd(as_pairs(a), as_pairs(b))); }
static inline Vec high_pairs(Vec a, Vec b) { return _mm512_castpd_ps(_mm512_unpackhi_pd(as_pairs(a), as_pairs(b))); }

static inline void transpose(Vec (&x)[16]) {
    Vec y[16];
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {  // now x[i + j] holds, in its lane l, column 4 l + j of rows i to i + 3
        x[i] = low_pairs(y[i], y[i + 2]);
        x[i + 1] = high_pairs(y[i], y[i + 2]);
        x[i + 2] = low_pairs(y[i + 1], y[i + 3]);
        x[i + 3] = high_pairs(y[i + 1], y[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        Vec a = _mm512_shuffle_f32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_f32x4(x[j], x[4 + j], 0xdd);
        Vec c = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0x88), d = _mm512_shuffle_f32x4(x[8 + j], x[12 + j], 0xdd);
        y[j] = _mm512_shuffle_f32x4(a, c, 0x88);
        y[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        y[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
        y[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; i++) x[i] = y[i];
}

// In each group of four lanes: that group's sums of a, b, c and d.
static inline Vec sums_of_fours(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b), cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
    return low_pairs(ab, cd) + high_pairs(ab, cd);
}
// The groups of each vector added up, one vector's after the other's.
static inline Vec sum_groups(const Vec (&x)[4]) {
    Vec a = _mm512_shuffle_f32x4(x[0], x[1], 0x44) + _mm512_shuffle_f32x4(x[0], x[1], 0xee);
    Vec b = _mm512_shuffle_f32x4(x[2], x[3], 0x44) + _mm512_shuffle_f32x4(x[2], x[3], 0xee);
    return _mm512_shuffle_f32x4(a, b, 0x88) + _mm512_shuffle_f32x4(a, b, 0xdd);
}
#else
static inline __m256d as_pairs(Vec x) { return _mm256_castps_pd(x); }
static inline Vec low_pairs(Vec a, Vec b) { return _mm256_castpd_ps(_mm256_unpacklo_pd(as_pairs(a), as_pairs(b))); }
static inline Vec high_pairs(Vec a, Vec b) { return _mm256_castpd_ps(_mm256_unpackhi_pd(as_pairs(a), as_pairs(b))); }

static inline void transpose(Vec (&x)[8]) {
    Vec y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        x[i] = low_pairs(y[i], y[i + 2]);
        x[i + 1] = high_pairs(y[i], y[i + 2]);
        x[i + 2] = low_pairs(y[i + 1], y[i + 3]);
        x[i + 3] = high_pairs(y[i + 1], y[i + 3]);
    }
    for (int j = 0; j < 4; j++) {
        y[j] = _mm256_permute2f128_ps(x[j], x[4 + j], 0x20);
        y[4 + j] = _mm256_permute2f128_ps(x[j], x[4 + j], 0x31);
    }
    for (int i = 0; i < 8; i++) x[i] = y[i];
}

static inline Vec sums_of_fours(Vec a, Vec b, Vec c, Vec d) {
    Vec ab = _mm256_unpacklo_ps(a, b) + _mm256_unpackhi_ps(a, b), cd = _mm256_unpacklo_ps(c, d) + _mm256_unpackhi_ps(c, d);
    return low_pairs(ab, cd) + high_pairs(ab, cd);
}
static inline Vec sum_groups(const Vec (&x)[2]) {
    return _mm256_permute2f128_ps(x[0], x[1], 0x20) + _mm256_permute2f128_ps(x[0], x[1], 0x31);
}
#endif
