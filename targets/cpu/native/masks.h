// Comparisons of vectors as bits, one a lane, the first lane in the lowest bit; and sums in float64.
#pragma once
#include "wide.h"

#if defined(__AVX512F__)
static inline uint32_t lanes_equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline uint32_t lanes_above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline uint32_t lanes_at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
static inline uint32_t lanes_unordered(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
static inline Wide widened_low(Vec a) { return (Wide)_mm512_cvtps_pd(_mm512_castps512_ps256(a)); }
static inline Wide widened_high(Vec a) { return (Wide)_mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1)); }
#else
static inline uint32_t lanes_equal(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
static inline uint32_t lanes_above(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
static inline uint32_t lanes_at_least(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
static inline uint32_t lanes_unordered(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q)); }
static inline Wide widened_low(Vec a) { return (Wide)_mm256_cvtps_pd(_mm256_castps256_ps128(a)); }
static inline Wide widened_high(Vec a) { return (Wide)_mm256_cvtps_pd(_mm256_extractf128_ps(a, 1)); }
#endif

static inline uint32_t lanes_up_to(int count) { return static_cast<uint32_t>((uint64_t{1} << count) - 1); }

// body(lane) for each bit set, ascending
template <class Body> static inline void for_lanes(uint32_t bits, Body body) {
    for (; bits; bits &= bits - 1) body(__builtin_ctz(bits));
}

// A sum of float32 values in float64.
struct WideSum {
    Wide low = {}, high = {};

    void add(Vec x) {
        low += widened_low(x);
        high += widened_high(x);
    }
    double total() const {
        Wide both = low + high;
        double result = 0;
        for (int i = 0; i < WIDE; i++) result += both[i];
        return result;
    }
};
