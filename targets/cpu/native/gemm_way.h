// How activations of a type are multiplied by PANEL weights of a type, and what one step of it takes.
#pragma once
#include "panel.h"
#include "rows.h"

enum Way : int32_t {
    FLOATS,    // F32 weights: one k a step
    PAIRS,     // BF16 weights and activations: two k a step, by vdpbf16ps
    WIDENED,   // BF16 weights: two k a step, in float32
    BYTES,     // Q8_0 weights: 32 k a step, activations quantised to 8 bits in groups of 32
    NIBBLES,   // Q4_0 weights, the same
    MINIMUMS,  // Q4_1 weights, the same
    TILES,     // BF16 activations by matrix tiles (tiles.h): 32 k a step; quantised weights become BF16 on the way
};

constexpr int PARTS = COLUMNS / WIDTH;
// Rows of a block at most: as many as sums fit in the registers.
#if defined(__AVX512F__)
static inline constexpr int most_rows(Way way) {
    if (way == TILES) return 32;
#if defined(__AVX512VNNI__)
    return way <= WIDENED ? 12 : 8;
#else
    return way <= WIDENED ? 12 : 4;
#endif
}
static inline int filled_up(int rows) { return rows <= 4 ? rows : (rows + 1) / 2 * 2; }
#else
static inline constexpr int most_rows(Way) { return 6; }  // one half of the columns after the other
static inline int filled_up(int rows) { return rows <= 2 ? rows : (rows + 1) / 2 * 2; }
#endif
constexpr int MOST_ROWS = 12;  // whatever the way

// Quantised weights are worth unpacking from so many rows on.
constexpr int64_t LEAST_TILED_ROWS = 32;

// For all rows of a product together, however they are cut: they get the same bits.
static inline Way way_of(Type activation, Type weight, int64_t rows) {
#if defined(__AMX_BF16__)
    if (activation == BF16 && (weight == BF16 || (is_quantised(weight) && rows >= LEAST_TILED_ROWS))) return TILES;
#endif
    (void)rows;
    switch (weight) {
        case F32: return FLOATS;
        case Q8_0: return BYTES;
        case Q4_0: return NIBBLES;
        case Q4_1: return MINIMUMS;
        default: break;
    }
#if defined(__AVX512BF16__)
    if (activation == BF16) return PAIRS;
#endif
    (void)activation;
    return WIDENED;
}

static inline int64_t steps_of(Way way, int64_t K) { return way == FLOATS ? K : way <= WIDENED ? (K + 1) / 2 : (K + GROUP - 1) / GROUP; }

// Bytes of a panel in one step.
static inline constexpr int64_t panel_step(Way way) {
    return way <= WIDENED ? COLUMNS * 4 : way == BYTES ? Q8_0_GROUP_BYTES : way == NIBBLES ? Q4_0_GROUP_BYTES : Q4_1_GROUP_BYTES;
}

// Bytes of arranged activations in one step, of one row: 4, 8 (two floats), 64 (32 bfloat16), or 32 bytes, a scale, a start and a
// scaled sum.
static inline constexpr int64_t row_step(Way way) { return way == TILES ? 64 : way == WIDENED ? 8 : way < WIDENED ? 4 : GROUP + 12; }

// From how many rows on products look ahead. Machines with tiles (Intel's) read more memory at a time when they are told what comes; on
// others few rows leave the memory no time to spare, and what the processor fetches by itself does better.
static inline constexpr int rows_to_look_ahead(Way way) {
#if defined(__AMX_BF16__)
    (void)way;
    return 1;
#else
    return way == FLOATS || way == PAIRS || way == BYTES ? 6 : 4;
#endif
}

// What is fetched from memory while steps are multiplied: so many cache lines a step.
struct Ahead {
    const char* at;
    int64_t lines;
};

constexpr int64_t LINE = 64;
constexpr int64_t AHEAD_BYTES = 8 << 10;
static inline void fetch_line(const char* at) { _mm_prefetch(at, _MM_HINT_T1); }

// Asks for the start of panels that are about to be multiplied, before their rows are arranged: what lies further on is looked ahead for.
static inline void fetch_start(Way way, const char* panel) {
    if (rows_to_look_ahead(way) > 1) return;
    for (int64_t at = 0; at < AHEAD_BYTES; at += LINE) fetch_line(panel + at);
}
