// The microkernels of float weights: a block of rows times the 32 columns of a panel, sums held in registers.
#pragma once
#include "interleave.h"
#include "panel.h"
#include "rows.h"

// A step is 128 bytes of a panel. How it is multiplied:
enum Way : int32_t {
    FLOATS,   // F32 weights, one k
    PAIRS,    // BF16 weights, two k, by vdpbf16ps: BF16 activations
    WIDENED,  // BF16 weights, two k, in float32
};
constexpr int64_t STEP_BYTES = COLUMNS * 4;
constexpr int64_t STRETCH = 128;  // steps: 16 KB of a panel
constexpr int PARTS = COLUMNS / WIDTH;

#if defined(__AVX512F__)
constexpr int MOST_ROWS = 12;  // 12 x 2 sums of 32 registers
static inline int filled_up(int rows) { return rows <= 4 ? rows : (rows + 1) / 2 * 2; }
#else
constexpr int MOST_ROWS = 6;  // 6 x 2 sums of 16 registers, one half of the columns after the other
static inline int filled_up(int rows) { return rows <= 3 ? rows : MOST_ROWS; }
#endif

static inline Way way_of(Type activation, Type weight) {
    if (weight == F32) return FLOATS;
#if defined(__AVX512BF16__)
    if (activation == BF16) return PAIRS;
#endif
    (void)activation;
    return WIDENED;
}
static inline int64_t steps_of(Way way, int64_t K) { return way == FLOATS ? K : (K + 1) / 2; }
static inline int64_t step_bytes(Way way) { return way == WIDENED ? 8 : 4; }  // of one row

// ---- Arrangement: [steps][rows] of what a step multiplies by, 4 bytes (twice of WIDENED: [steps][2][rows]). ----

// Rows [first, first + count) as one block; rows past the last repeat it.
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

// ---- Products. ----

#if defined(__AVX512F__)
static inline __m512i bits_at(const char* p) { return _mm512_loadu_si512(p); }
static inline Vec low_half(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
static inline Vec high_half(__m512i x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(-65536))); }
#else
static inline __m256i bits_at(const char* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline Vec low_half(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
static inline Vec high_half(__m256i x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(-65536))); }
#endif

// One step of ROWS rows and PART vectors of columns.
template <Way WAY, int ROWS, int MANY> static inline void multiply_step(Vec (&sums)[ROWS][MANY], const float* x, const char* weight) {
#pragma GCC unroll 4
    for (int v = 0; v < MANY; v++) {
        const char* w = weight + v * WIDTH * 4;
        if constexpr (WAY == FLOATS) {
            Vec column = load(reinterpret_cast<const float*>(w));
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) sums[r][v] = fma(all(x[r]), column, sums[r][v]);
        } else if constexpr (WAY == WIDENED) {
            auto bits = bits_at(w);
            Vec even = low_half(bits), odd = high_half(bits);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) sums[r][v] = fma(all(x[r]), even, sums[r][v]);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) sums[r][v] = fma(all(x[ROWS + r]), odd, sums[r][v]);
        } else {
#if defined(__AVX512BF16__)
            __m512bh column = reinterpret_cast<__m512bh>(bits_at(w));
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                __m512i pair = _mm512_set1_epi32(reinterpret_cast<const int32_t*>(x)[r]);
                sums[r][v] = _mm512_dpbf16_ps(sums[r][v], column, reinterpret_cast<__m512bh>(pair));
            }
#endif
        }
    }
}

// out[ROWS][32] (+)= x . panel over `steps` steps, MANY vectors of columns at a time.
template <Way WAY, int ROWS, int MANY>
static void multiply_rows(const char* x, const char* panel, int64_t steps, float* out, bool fresh) {
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
            multiply_step<WAY>(sums, at, weight);
            at += WAY == WIDENED ? 2 * ROWS : ROWS;
            weight += STEP_BYTES;
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) store(out + r * COLUMNS + (part + v) * WIDTH, sums[r][v]);
        }
    }
}

template <Way WAY> static void multiply_block(int rows, const char* x, const char* panel, int64_t steps, float* out, bool fresh) {
    switch (rows) {
        case 1: return multiply_rows<WAY, 1, PARTS>(x, panel, steps, out, fresh);
        case 2: return multiply_rows<WAY, 2, PARTS>(x, panel, steps, out, fresh);
        case 3: return multiply_rows<WAY, 3, PARTS>(x, panel, steps, out, fresh);
#if defined(__AVX512F__)
        case 4: return multiply_rows<WAY, 4, PARTS>(x, panel, steps, out, fresh);
        case 6: return multiply_rows<WAY, 6, PARTS>(x, panel, steps, out, fresh);
        case 8: return multiply_rows<WAY, 8, PARTS>(x, panel, steps, out, fresh);
        case 10: return multiply_rows<WAY, 10, PARTS>(x, panel, steps, out, fresh);
#endif
        default: return multiply_rows<WAY, MOST_ROWS, 2>(x, panel, steps, out, fresh);
    }
}

static void multiply_block(Way way, int rows, const char* x, const char* panel, int64_t steps, float* out, bool fresh) {
    switch (way) {
        case FLOATS: return multiply_block<FLOATS>(rows, x, panel, steps, out, fresh);
#if defined(__AVX512BF16__)
        case PAIRS: return multiply_block<PAIRS>(rows, x, panel, steps, out, fresh);
#endif
        default: return multiply_block<WIDENED>(rows, x, panel, steps, out, fresh);
    }
}
