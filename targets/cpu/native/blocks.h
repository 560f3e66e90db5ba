// The block formats of ggml (https://github.com/ggml-org/ggml, ggml-common.h), and their quantisers: rounded as ggml's reference rounds.
#pragma once
#include "vector.h"

struct BlockQ8_0 {
    static constexpr Type TYPE = Q8_0;
    uint16_t scale;
    int8_t quants[32];
};
// Byte i holds value i in its low half, value 16 + i in its high half.
struct BlockQ4_0 {
    static constexpr Type TYPE = Q4_0;
    uint16_t scale;
    uint8_t quants[16];
};
struct BlockQ4_1 {
    static constexpr Type TYPE = Q4_1;
    uint16_t scale, minimum;
    uint8_t quants[16];
};
// 8 groups of 32: value = scale * scales[group] * q - minimum * minimums[group], both of 6 bits.
struct BlockQ4_K {
    uint16_t scale, minimum;
    uint8_t scales[12];
    uint8_t quants[128];
};
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20 && sizeof(BlockQ4_K) == 144, "packed");

static inline float half_to_float(uint16_t x) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(x))); }
static inline uint16_t float_to_half(float x) {
    return static_cast<uint16_t>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)));
}

#if defined(__AVX512F__)
static inline Vec magnitude(Vec x) { return _mm512_abs_ps(x); }
static inline Vec toward_zero(Vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline Vec signed_as(Vec x, Vec sign) {
    __m512i bit = _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(1 << 31));
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(x), bit));
}
static inline uint32_t equal_lanes(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline void store_bytes(void* to, Vec whole) {  // whole numbers of -128..127, to WIDTH bytes
    _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(whole)));
}
#else
static inline Vec magnitude(Vec x) { return _mm256_andnot_ps(all(-0.0f), x); }
static inline Vec toward_zero(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
static inline Vec signed_as(Vec x, Vec sign) { return _mm256_or_ps(x, _mm256_and_ps(sign, all(-0.0f))); }
static inline uint32_t equal_lanes(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
static inline void store_bytes(void* to, Vec whole) {
    __m256i words = _mm256_cvtps_epi32(whole);
    __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(static_cast<__m128i*>(to), _mm_packs_epi16(shorts, shorts));
}
#endif
static inline float smallest(Vec x) { return 0.0f - largest(zero() - x); }  // of zeros: +0

// The 32 values of a block.
struct Values {
    static constexpr int PARTS = 32 / WIDTH;
    Vec part[PARTS];

    template <class T> void load_from(const T* from) {
        for (int i = 0; i < PARTS; i++) part[i] = load(from + i * WIDTH);
    }
    Vec most_by_magnitude() const {
        Vec most = magnitude(part[0]);
        for (int i = 1; i < PARTS; i++) most = vmax(most, magnitude(part[i]));
        return most;
    }
};

static inline float inverse(float x) { return x == 0 ? 0.0f : 1.0f / x; }

static inline void quantise(const Values& values, BlockQ8_0& block) {
    float scale = largest(values.most_by_magnitude()) / 127;
    block.scale = float_to_half(scale);
    Vec factor = all(inverse(scale));
    for (int i = 0; i < Values::PARTS; i++) {
        Vec x = values.part[i] * factor, size = magnitude(x), whole = toward_zero(size);
        Vec rounded_up = toward_zero(settled((size - whole) * all(2.0f)));  // to nearest, ties away from zero
        store_bytes(block.quants + i * WIDTH, signed_as(whole + rounded_up, x));
    }
}

static inline void join_nibbles(const uint8_t* values, uint8_t* quants) {
    __m128i low = _mm_load_si128(reinterpret_cast<const __m128i*>(values));
    __m128i high = _mm_load_si128(reinterpret_cast<const __m128i*>(values + 16));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(quants), _mm_or_si128(low, _mm_slli_epi16(high, 4)));
}

static inline void quantise(const Values& values, BlockQ4_0& block) {
    Vec most = all(largest(values.most_by_magnitude()));
    uint32_t found = 0;
    alignas(64) float plain[32];
    for (int i = 0; i < Values::PARTS; i++) {
        found |= equal_lanes(magnitude(values.part[i]), most) << (i * WIDTH);
        store(plain + i * WIDTH, values.part[i]);
    }
    float scale = (found ? plain[__builtin_ctz(found)] : 0.0f) / -8;  // the first of them gives the sign
    block.scale = float_to_half(scale);
    Vec factor = all(inverse(scale));
    alignas(16) uint8_t quants[32];
    for (int i = 0; i < Values::PARTS; i++) {
        Vec x = toward_zero(settled(values.part[i] * factor) + all(8.5f));
        store_bytes(quants + i * WIDTH, vmin(x, all(15.0f)));
    }
    join_nibbles(quants, block.quants);
}

static inline void quantise(const Values& values, BlockQ4_1& block) {
    Vec high = values.part[0], low = values.part[0];
    for (int i = 1; i < Values::PARTS; i++) {
        high = vmax(high, values.part[i]);
        low = vmin(low, values.part[i]);
    }
    float minimum = smallest(low), scale = (largest(high) - minimum) / 15;
    block.scale = float_to_half(scale);
    block.minimum = float_to_half(minimum);
    Vec factor = all(inverse(scale));
    alignas(16) uint8_t quants[32];
    for (int i = 0; i < Values::PARTS; i++) {
        Vec x = toward_zero(settled((values.part[i] - all(minimum)) * factor) + all(0.5f));
        store_bytes(quants + i * WIDTH, vmin(x, all(15.0f)));
    }
    join_nibbles(quants, block.quants);
}

// Group 0..7 of a super-block as a block of its own; scale and minimum are rounded to half precision.
static inline void split(const BlockQ4_K& from, int group, BlockQ4_1& block) {
    const uint8_t* s = from.scales;
    int scale = group < 4 ? s[group] & 63 : (s[group + 4] & 15) | (s[group - 4] >> 6) << 4;
    int minimum = group < 4 ? s[group + 4] & 63 : s[group + 4] >> 4 | (s[group] >> 6) << 4;
    block.scale = float_to_half(half_to_float(from.scale) * static_cast<float>(scale));
    block.minimum = float_to_half(-(half_to_float(from.minimum) * static_cast<float>(minimum)));
    const __m128i* quants = reinterpret_cast<const __m128i*>(from.quants + group / 2 * 32);
    __m128i low = _mm_loadu_si128(quants), high = _mm_loadu_si128(quants + 1), mask = _mm_set1_epi8(15);
    if (group % 2) {
        low = _mm_srli_epi16(low, 4);
        high = _mm_srli_epi16(high, 4);
    }
    low = _mm_and_si128(low, mask);
    high = _mm_slli_epi16(_mm_and_si128(high, mask), 4);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(block.quants), _mm_or_si128(low, high));
}
