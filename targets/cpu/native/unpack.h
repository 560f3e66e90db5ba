// Groups of quantised panels as BF16 panels: [32 of K / 2][32 columns][2], each value rounded once.
#pragma once
#include "gemm_way.h"
#include "ints.h"

#if defined(__AMX_BF16__)

static inline int64_t group_bytes(Type type) { return type == Q8_0 ? Q8_0_GROUP_BYTES : type == Q4_0 ? Q4_0_GROUP_BYTES : Q4_1_GROUP_BYTES; }

// A number of BITS bits, which lies SHIFT bits from the right in each of 16 words, as scale * number + start. It becomes the highest
// bits of the fraction of a float, 2^BITS + number.
template <int BITS, int SHIFT> static inline Vec scaled(__m512i words, Vec scale, Vec start) {
    constexpr int TO = 23 - BITS, MASK = ((1 << BITS) - 1) << TO;
    const __m512i one = _mm512_castps_si512(all(static_cast<float>(1 << BITS)));
    if constexpr (SHIFT < TO) words = _mm512_slli_epi32(words, TO - SHIFT);
    else words = _mm512_srli_epi32(words, SHIFT - TO);
    constexpr int AND_OR = 0xEA;  // a & b | c
    return fma(_mm512_castsi512_ps(_mm512_ternarylogic_epi32(words, _mm512_set1_epi32(MASK), one, AND_OR)), scale, start);
}

// Two of K of 16 columns, side by side.
static inline void put_pairs(char* to, Vec even, Vec odd) {
    alignas(64) static constexpr uint16_t SIDE_BY_SIDE[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(SIDE_BY_SIDE), both));
}

// Four of K, BITS bits each, the first SHIFT bits from the right, STEP bits apart.
template <int BITS, int SHIFT> static inline void put_four(char* to, __m512i words, Vec scale, Vec start) {
    put_pairs(to, scaled<BITS, SHIFT>(words, scale, start), scaled<BITS, SHIFT + 8>(words, scale, start));
    put_pairs(to + COLUMNS * 4, scaled<BITS, SHIFT + 16>(words, scale, start), scaled<BITS, SHIFT + 24>(words, scale, start));
}

template <Type TYPE> static void unpack_groups(const char* from, int64_t groups, char* to) {
    constexpr int64_t HEAD = TYPE == Q4_1 ? 4 * COLUMNS : 2 * COLUMNS;
    constexpr int64_t FOUR = COLUMNS * 8;  // bytes of four of K in `to`
    for (int64_t g = 0; g < groups; g++, to += GROUP * COLUMNS * 2) {
        const char* quants = from + HEAD;
        for (int half = 0; half < PARTS; half++) {
            Vec scale = halves_at(from + half * WIDTH * 2), start;
            if constexpr (TYPE == Q8_0) start = scale * all(-(256 + 128));
            else if constexpr (TYPE == Q4_0) start = scale * all(-(16 + 8));
            else start = fma(scale, all(-16), halves_at(from + 2 * COLUMNS + half * WIDTH * 2));
            char* columns = to + half * LINE;
#pragma GCC unroll 4
            for (int j = 0; j < (TYPE == Q8_0 ? 8 : 4); j++) {
                __m512i words = ints_at(quants + j * COLUMNS * 4 + half * LINE);
                if constexpr (TYPE == Q8_0) {
                    put_four<8, 0>(columns + j * FOUR, words, scale, start);
                } else {
                    put_four<4, 0>(columns + j * FOUR, words, scale, start);
                    put_four<4, 4>(columns + (j + 4) * FOUR, words, scale, start);
                }
            }
        }
        from = quants + (TYPE == Q8_0 ? 8 : 4) * COLUMNS * 4;
    }
}

static inline void unpack_groups(Type type, const char* from, int64_t groups, char* to) {
    if (type == Q8_0) unpack_groups<Q8_0>(from, groups, to);
    else if (type == Q4_0) unpack_groups<Q4_0>(from, groups, to);
    else unpack_groups<Q4_1>(from, groups, to);
}
#endif
