// The microkernels of float weights: a block of rows times the 32 columns of a panel, sums held in registers.
#pragma once
#include "gemm_way.h"
#include "interleave.h"

// Rows [first, first + count) as one block; rows past the last repeat it. [steps][count] words: a float or a pair of bfloat16;
// [steps][2][count] floats where bfloat16 is widened.
static void arrange_floats(Way way, const Rows& rows, int64_t first, int count, int64_t K, char* to) {
    const void* from[MOST_ROWS];
    for (int r = 0; r < count; r++) from[r] = rows.at<char>(first + r < rows.count ? first + r : rows.count - 1);
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    if (way == PAIRS) {
        interleave(reinterpret_cast<const Word* const*>(from), count, K / 2, words);
        for (int r = 0; K % 2 && r < count; r++) words[K / 2 * count + r] = static_cast<const bf16*>(from[r])[K - 1];
        return;
    }
    if (rows.type == F32) interleave(reinterpret_cast<const float* const*>(from), count, K, words);
    else interleave(reinterpret_cast<const bf16* const*>(from), count, K, words);
    for (int r = 0; way == WIDENED && K % 2 && r < count; r++) words[K * count + r] = 0;
}

#if defined(__AVX512F__)
static inline __m512i bits_at(const char* p) { return _mm512_loadu_si512(p); }
static inline Vec low_half(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
static inline Vec high_half(__m512i x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))); }
#else
static inline __m256i bits_at(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline Vec low_half(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
static inline Vec high_half(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_srli_epi32(x, 16), 16)); }  // spares a mask
#endif

// sums[r][v] += x[r] * columns[v]. Row by row: a broadcast is used for all columns at once and then forgotten, sums fill the registers.
template <int ROWS, int MANY> static inline void add_products(Vec (&sums)[ROWS][MANY], const float* x, const Vec (&columns)[MANY]) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        Vec value = all(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) sums[r][v] = fma(value, columns[v], sums[r][v]);
    }
}

// One step of ROWS rows and MANY vectors of columns.
template <Way WAY, int ROWS, int MANY> static inline void multiply_step(Vec (&sums)[ROWS][MANY], const float* x, const char* weight) {
    if constexpr (WAY == FLOATS) {
        Vec columns[MANY];
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) columns[v] = load(reinterpret_cast<const float*>(weight) + v * WIDTH);
        add_products(sums, x, columns);
    } else if constexpr (WAY == WIDENED) {
        Vec columns[MANY];
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) columns[v] = low_half(bits_at(weight + v * WIDTH * 4));
        add_products(sums, x, columns);
        __asm__("" : "+r"(weight));  // read again: the registers are full
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) columns[v] = high_half(bits_at(weight + v * WIDTH * 4));
        add_products(sums, x + ROWS, columns);
    } else {
#if defined(__AVX512BF16__)
        __m512bh columns[MANY];
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) columns[v] = reinterpret_cast<__m512bh>(bits_at(weight + v * WIDTH * 4));
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            __m512bh pair = reinterpret_cast<__m512bh>(_mm512_set1_epi32(reinterpret_cast<const int32_t*>(x)[r]));
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], columns[v], pair);
        }
#endif
    }
}

// out[ROWS][32] (+)= x . panel over `steps` steps, MANY vectors of columns at a time.
template <Way WAY, int ROWS, int MANY>
[[gnu::noinline]] static void multiply_float_rows(const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    for (int part = 0; part < PARTS; part += MANY) {
        Vec sums[ROWS][MANY];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) sums[r][v] = fresh ? zero() : load(out + r * COLUMNS + (part + v) * WIDTH);
        }
        const float* at = reinterpret_cast<const float*>(x);
        const char* weight = panel + part * WIDTH * 4;
#pragma GCC unroll 2
        for (int64_t s = 0; s < steps; s++) {
            if constexpr (ROWS >= rows_to_look_ahead(WAY)) {
                if (ahead.lines > 0) fetch_line(ahead.at);
                if (ahead.lines > 1) fetch_line(ahead.at + LINE);
                ahead.at += ahead.lines * LINE;
            }
            multiply_step<WAY>(sums, at, weight);
            at += WAY == WIDENED ? 2 * ROWS : ROWS;
            weight += panel_step(WAY);
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) store(out + r * COLUMNS + (part + v) * WIDTH, sums[r][v]);
        }
    }
}
