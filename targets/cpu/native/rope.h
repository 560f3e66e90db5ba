// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of one head of one row.
#pragma once
#include "lanes.h"

// The even and the odd elements of two neighbouring vectors, and back.
#if defined(__AVX512F__)
static inline void unzip(Vec a, Vec b, Vec& even, Vec& odd) {
    __m512i first = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    even = _mm512_permutex2var_ps(a, first, b);
    odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(first, _mm512_set1_epi32(1)), b);
}
static inline void zip(Vec even, Vec odd, Vec& a, Vec& b) {
    __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    a = _mm512_permutex2var_ps(even, first, odd);
    b = _mm512_permutex2var_ps(even, _mm512_add_epi32(first, _mm512_set1_epi32(8)), odd);
}
#else
static inline Vec fours(__m256 x) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(x), 0xd8)); }
static inline void unzip(Vec a, Vec b, Vec& even, Vec& odd) {
    even = fours(_mm256_shuffle_ps(a, b, 0x88));
    odd = fours(_mm256_shuffle_ps(a, b, 0xdd));
}
static inline void zip(Vec even, Vec odd, Vec& a, Vec& b) {
    Vec low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    a = _mm256_permute2f128_ps(low, high, 0x20);
    b = _mm256_permute2f128_ps(low, high, 0x31);
}
#endif

// Both products are rounded to T before the sum, as eager models do whose tables are of T.
template <class T> static inline void turn(Vec& x, Vec& y, Vec cos, Vec sin) {
    Vec first = rounded<T>(x * cos) - rounded<T>(y * sin);
    y = rounded<T>(y * cos) + rounded<T>(x * sin);
    x = first;
}

// Rotates columns [0, turned) of x[columns] and copies the rest; `to` may be x. The angle of pair j is column j of cos and sin;
// pairs are (j, j + turned / 2), or (2j, 2j + 1) when interleaved. The tables are of x's type or float32.
template <class T, class Table>
static inline void rotate_head(const T* x, const Table* cos, const Table* sin, T* to, int64_t columns, int64_t turned, bool interleaved) {
    int64_t half = turned / 2;
    if (!interleaved) {
        for_vectors(half, [&](int64_t j, auto lanes) {
            Vec a = load(x + j, lanes), b = load(x + half + j, lanes);
            turn<Table>(a, b, load(cos + j, lanes), load(sin + j, lanes));
            store(to + j, a, lanes);
            store(to + half + j, b, lanes);
        });
    } else {
        for_vectors(half, [&](int64_t j, auto lanes) {
            int pairs = lanes.count, low = 2 * pairs < WIDTH ? 2 * pairs : WIDTH, high = 2 * pairs - low;
            Vec first = load_some(x + 2 * j, low), second = high ? load_some(x + 2 * j + WIDTH, high) : zero(), even, odd;
            if (pairs == WIDTH) {
                first = load(x + 2 * j);
                second = load(x + 2 * j + WIDTH);
            }
            unzip(first, second, even, odd);
            turn<Table>(even, odd, load(cos + j, lanes), load(sin + j, lanes));
            zip(even, odd, first, second);
            if (pairs == WIDTH) {
                store(to + 2 * j, first);
                store(to + 2 * j + WIDTH, second);
            } else {
                store_some(to + 2 * j, first, low);
                if (high) store_some(to + 2 * j + WIDTH, second, high);
            }
        });
    }
    if (turned < columns && to != x) copy_bytes(to + turned, x + turned, (columns - turned) * sizeof(T));
}

static inline const char* check_rope_tables(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    if (!is_float(x) || x.rank != 3 || x.strides[2] != 1) return "x[rows, heads, D] of float32 or bfloat16, features side by side";
    if ((cos.type != x.type && cos.type != F32) || sin.type != cos.type) return "tables of the type of x, or float32";
    if (cos.rank != 2 || sin.rank != 2 || cos.strides[1] != 1 || sin.strides[1] != 1) return "cos[rows, d], sin[rows, d], columns side by side";
    if (cos.shape[0] != x.shape[0] || sin.shape[0] != x.shape[0] || cos.shape[1] != sin.shape[1]) return "tables of the rows of x";
    int64_t turned = cos.shape[1];
    return turned > 0 && turned <= x.shape[2] && turned % 2 == 0 ? nullptr : "tables of an even number of columns, at most D";
}

// Calls run(T, Table), values that stand for the element types of x and of its tables.
template <class Run> static inline void for_rope_types(const Tensor& x, const Tensor& table, Run run) {
    if (x.type == F32) run(float{}, float{});
    else if (table.type == F32) run(bf16{}, float{});
    else run(bf16{}, bf16{});
}
