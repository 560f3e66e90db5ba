// The microkernels of quantised weights: integer products of a group of 32, then scaled into float32 sums.
#pragma once
#include "gemm_way.h"
#include "interleave.h"
#include "ints.h"

// What stands for four groups of a row: signed bytes, x = scale * byte, and the sum of the bytes.
struct ByteGroups {
    alignas(32) int8_t bytes[4][GROUP];
    alignas(16) float scale[4];
    alignas(16) int32_t sum[4];
};

// Together: what is done across a vector costs a quarter. A group with a value that is not a number gets such a scale.
template <class T> static inline void quantise_groups(const T* x, int64_t groups, ByteGroups& to) {
    constexpr int MANY = GROUP / WIDTH;
    const T* from[4];
    Ints most[4];
    for (int g = 0; g < 4; g++) from[g] = x + (g < groups ? g : groups - 1) * GROUP;
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        most[g] = size_bits(load(from[g]));
#pragma GCC unroll 4
        for (int i = 1; i < MANY; i++) most[g] = larger(most[g], size_bits(load(from[g] + i * WIDTH)));  // of NaN the largest bits
    }
    __m128 size = _mm_castsi128_ps(largest_of_each(most)), most_byte = _mm_set1_ps(127);
    alignas(16) float factor[4];
    _mm_store_ps(factor, _mm_and_ps(_mm_div_ps(most_byte, size), _mm_cmpneq_ps(size, _mm_setzero_ps())));
    _mm_store_ps(to.scale, _mm_mul_ps(size, _mm_set1_ps(1.0f / 127)));
    __m256i bytes[4];
#pragma GCC unroll 4
    for (int g = 0; g < 4; g++) {
        Ints whole[MANY];
#pragma GCC unroll 4
        for (int i = 0; i < MANY; i++) whole[i] = to_ints(load(from[g] + i * WIDTH) * all(factor[g]));
        bytes[g] = bytes_of(whole);
        _mm256_store_si256(reinterpret_cast<__m256i*>(to.bytes[g]), bytes[g]);
    }
    _mm_store_si128(reinterpret_cast<__m128i*>(to.sum), sums_of_bytes(bytes));
}

// Of each group: [8][count] fours of bytes along k, then of each row its scale, what integer sums start from, and scale * sum.
template <class T> static void arrange_quantised_as(Way way, const Rows& rows, int64_t first, int count, int64_t K, char* to) {
    const int32_t factor = way == BYTES ? -BIAS : way == NIBBLES ? -8 : 0;
    const int64_t groups = K / GROUP, step = count * row_step(way);
    for (int r = 0; r < count; r++) {
        const T* from = rows.at<T>(first + r < rows.count ? first + r : rows.count - 1);
        char* at = to;
        for (int64_t done = 0; done < groups; done += 4) {
            ByteGroups four;
            int64_t some = groups - done < 4 ? groups - done : 4;
            quantise_groups(from + done * GROUP, some, four);
            for (int g = 0; g < some; g++, at += step) {
                uint32_t* fours = reinterpret_cast<uint32_t*>(at) + r;
                float* scales = reinterpret_cast<float*>(at + count * GROUP) + r;
#pragma GCC unroll 8
                for (int j = 0; j < 8; j++) fours[j * count] = reinterpret_cast<const Word*>(four.bytes[g])[j];
                scales[0] = four.scale[g];
                reinterpret_cast<int32_t*>(scales)[count] = factor * four.sum[g];
                scales[2 * count] = four.scale[g] * static_cast<float>(four.sum[g]);
            }
        }
    }
}

static void arrange_quantised(Way way, const Rows& rows, int64_t first, int count, int64_t K, char* to) {
    if (rows.type == F32) arrange_quantised_as<float>(way, rows, first, count, K, to);
    else arrange_quantised_as<bf16>(way, rows, first, count, K, to);
}

// sums[r][v] += four bytes of row r times four of columns v. Row by row: sums fill the registers.
template <int ROWS, int MANY> static inline void add_bytes(Ints (&sums)[ROWS][MANY], const int32_t* x, const char* quants) {
    if constexpr (MANY > 2) {  // too many columns for the registers
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) {
            SignedBytes column(ints_at(quants + v * WIDTH * 4));
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) sums[r][v] = column.dot(sums[r][v], all_ints(x[r]));
        }
    } else {
        SignedBytes columns[] = {SignedBytes(ints_at(quants)), SignedBytes(ints_at(quants + WIDTH * 4))};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            Ints value = all_ints(x[r]);
#pragma GCC unroll 2
            for (int v = 0; v < MANY; v++) sums[r][v] = columns[v].dot(sums[r][v], value);
        }
    }
}
template <int ROWS, int MANY> static inline void add_nibbles(Ints (&sums)[ROWS][MANY], const int32_t* x, const Ints (&columns)[MANY]) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
        Ints value = all_ints(x[r]);
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) sums[r][v] = dot_nibbles(sums[r][v], columns[v], value);
    }
}

// The j-th 128 bytes of a group: one four of each column, or two in nibbles.
template <Way WAY, int ROWS, int MANY>
static inline void multiply_fours(Ints (&sums)[ROWS][MANY], const int32_t* x, const char* quants, int j, Ahead ahead) {
    if constexpr (ROWS >= rows_to_look_ahead(WAY)) {
        if (ahead.lines > 2 * j) fetch_line(ahead.at + 2 * j * LINE);
        if (ahead.lines > 2 * j + 1) fetch_line(ahead.at + (2 * j + 1) * LINE);
    }
    x += j * ROWS;
    quants += j * COLUMNS * 4;
    if constexpr (WAY == BYTES) {
        add_bytes(sums, x, quants);
    } else {
        Ints bits[MANY], part[MANY];
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) part[v] = low_nibbles(bits[v] = ints_at(quants + v * WIDTH * 4));
        add_nibbles(sums, x, part);
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) part[v] = high_nibbles(bits[v]);
        add_nibbles(sums, x + 4 * ROWS, part);
    }
}

// The integer sums of one group; `quants` is the first column's first four.
template <Way WAY, int ROWS, int MANY>
static inline void multiply_group(Ints (&sums)[ROWS][MANY], const int32_t* x, const int32_t* starts, const char* quants, Ahead ahead) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < MANY; v++) sums[r][v] = WAY == BYTES ? all_ints(starts[r]) : begin_nibbles(all_ints(starts[r]));
    }
    if constexpr (WAY == BYTES && ROWS <= 4) {  // wait for memory: it foresees a loop of few loads best
#pragma GCC unroll 1
        for (int j = 0; j < 8; j++) multiply_fours<WAY>(sums, x, quants, j, ahead);
    } else {
#pragma GCC unroll 8
        for (int j = 0; j < (WAY == BYTES ? 8 : 4); j++) multiply_fours<WAY>(sums, x, quants, j, ahead);
    }
    if constexpr (WAY != BYTES) {
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) sums[r][v] = end_nibbles(sums[r][v], all_ints(starts[r]));
        }
    }
}

// out[ROWS][32] (+)= x . panel over `steps` groups, MANY vectors of columns at a time.
template <Way WAY, int ROWS, int MANY>
[[gnu::noinline]] static void multiply_quantised_rows(const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    constexpr int64_t HEAD = WAY == MINIMUMS ? 4 * COLUMNS : 2 * COLUMNS;
    for (int part = 0; part < PARTS; part += MANY) {
        Vec totals[ROWS][MANY];
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) totals[r][v] = fresh ? zero() : load(out + r * COLUMNS + (part + v) * WIDTH);
        }
        const char *at = x, *weight = panel;
        for (int64_t s = 0; s < steps; s++, at += ROWS * row_step(WAY), weight += panel_step(WAY)) {
            const float* scales = reinterpret_cast<const float*>(at + ROWS * GROUP);
            const float* scaled_sums = scales + 2 * ROWS;
            Vec scale[MANY], minimum[MANY];
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) {  // now: memory is best read in order
                scale[v] = settled(halves_at(weight + (part + v) * WIDTH * 2));
                if constexpr (WAY == MINIMUMS) minimum[v] = settled(halves_at(weight + 2 * COLUMNS + (part + v) * WIDTH * 2));
            }
            Ints sums[ROWS][MANY];
            multiply_group<WAY>(sums, reinterpret_cast<const int32_t*>(at), reinterpret_cast<const int32_t*>(scales + ROWS),
                                weight + HEAD + part * WIDTH * 4, ahead);
            if constexpr (ROWS >= rows_to_look_ahead(WAY)) {
                for (int64_t line = WAY == BYTES ? 16 : 8; line < ahead.lines; line++) fetch_line(ahead.at + line * LINE);
                ahead.at += ahead.lines * LINE;
            }
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
                for (int v = 0; v < MANY; v++) {
                    totals[r][v] = fma(to_floats(sums[r][v]) * scale[v], all(scales[r]), totals[r][v]);
                    if constexpr (WAY == MINIMUMS) totals[r][v] = fma(minimum[v], all(scaled_sums[r]), totals[r][v]);
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
            for (int v = 0; v < MANY; v++) store(out + r * COLUMNS + (part + v) * WIDTH, totals[r][v]);
        }
    }
}
