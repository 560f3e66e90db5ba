// Transposition of rows of 4-byte elements: to[k][row] = rows[row][k].
#pragma once
#include "vector.h"

// Two bfloat16, or four bytes, moved as one.
using Word __attribute__((may_alias, aligned(1))) = uint32_t;

static inline __m128i four(const float* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
static inline __m128i four(const Word* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
static inline __m128i four(const bf16* p) {  // widened
    return _mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 16);
}
static inline uint32_t one(const float* p) { return __builtin_bit_cast(uint32_t, *p); }
static inline uint32_t one(const Word* p) { return *p; }
static inline uint32_t one(const bf16* p) { return static_cast<uint32_t>(*p) << 16; }

// 4 of k of 4 rows; `stride` elements lie between two k in `to`.
template <class T> static inline void interleave_four(const T* const* rows, int64_t k, uint32_t* to, int64_t stride) {
    __m128i a = four(rows[0] + k), b = four(rows[1] + k), c = four(rows[2] + k), d = four(rows[3] + k);
    __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
    __m128i more_ab = _mm_unpackhi_epi32(a, b), more_cd = _mm_unpackhi_epi32(c, d);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + stride), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * stride), _mm_unpacklo_epi64(more_ab, more_cd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * stride), _mm_unpackhi_epi64(more_ab, more_cd));
}

// k < n of `count` rows. A cache line of each row at a time: rows a power of two apart would drive each other out.
template <class T> static void interleave(const T* const* rows, int count, int64_t n, uint32_t* to) {
    int64_t k = 0;
    if (count == 1) {
        for (; k + 4 <= n; k += 4) _mm_storeu_si128(reinterpret_cast<__m128i*>(to + k), four(rows[0] + k));
    }
    while (k + 4 <= n) {
        int64_t until = n - k < 16 ? n / 4 * 4 : k + 16;
        int r = 0;
        for (; r + 4 <= count; r += 4) {
            for (int64_t at = k; at < until; at += 4) interleave_four(rows + r, at, to + at * count + r, count);
        }
        for (; r < count; r++) {
            for (int64_t at = k; at < until; at++) to[at * count + r] = one(rows[r] + at);
        }
        k = until;
    }
    for (; k < n; k++) {
        for (int r = 0; r < count; r++) to[k * count + r] = one(rows[r] + k);
    }
}
