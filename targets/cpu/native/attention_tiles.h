// Products of matrix tiles (AMX) for prefill attention: c[rows][lanes] (+)= a[rows][words] x b[words][lanes], a word being a pair of
// bfloat16 along the dimension that is summed over.
//
// Eight registers of 16 rows of 64 bytes: four sums (two tiles of rows by two of lanes), two tiles of a, two of b.
#pragma once
#include "vector.h"

#if defined(__AMX_BF16__)
constexpr bool HAVE_TILES = true;
#else
constexpr bool HAVE_TILES = false;
#endif

constexpr int TILE = 16;  // rows, words or lanes

#if defined(__AMX_BF16__)
// The registers' shapes: set while this lives.
struct WholeTiles {
    WholeTiles() {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t line_bytes[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        for (int tile = 0; tile < 8; tile++) {
            shapes.line_bytes[tile] = 4 * TILE;
            shapes.rows[tile] = TILE;
        }
        __asm__ volatile("" : : "r"(&shapes) : "memory");
        _tile_loadconfig(&shapes);
    }
    ~WholeTiles() { _tile_release(); }
    WholeTiles(const WholeTiles&) = delete;
};

// M x N tiles. Rows of a lie `a_row` words apart, those of b and c `row`; `steps` tiles are summed over.
template <int M, int N>
static inline void multiply_tiles(const uint32_t* a, int64_t a_row, const uint32_t* b, float* c, int64_t row, int64_t steps, bool add) {
    const int64_t a_bytes = a_row * 4, bytes = row * 4;
    float* lower = c + TILE * row;
    if (add) {
        _tile_loadd(0, c, bytes);
        if constexpr (N > 1) _tile_loadd(1, c + TILE, bytes);
        if constexpr (M > 1) _tile_loadd(2, lower, bytes);
        if constexpr (M > 1 && N > 1) _tile_loadd(3, lower + TILE, bytes);
    } else {
        _tile_zero(0);
        if constexpr (N > 1) _tile_zero(1);
        if constexpr (M > 1) _tile_zero(2);
        if constexpr (M > 1 && N > 1) _tile_zero(3);
    }
    for (int64_t step = 0; step < steps; step++, a += TILE, b += TILE * row) {
        _tile_loadd(4, a, a_bytes);
        _tile_loadd(6, b, bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (N > 1) _tile_loadd(7, b + TILE, bytes);
        if constexpr (N > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (M > 1) _tile_loadd(5, a + TILE * a_row, a_bytes);
        if constexpr (M > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, bytes);
    if constexpr (N > 1) _tile_stored(1, c + TILE, bytes);
    if constexpr (M > 1) _tile_stored(2, lower, bytes);
    if constexpr (M > 1 && N > 1) _tile_stored(3, lower + TILE, bytes);
}

// The same for any number of `rows` (taken in whole tiles) and `tiles` of lanes.
static inline void multiply_tiles(
    const uint32_t* a, int64_t a_row, int64_t rows, const uint32_t* b, int tiles, float* c, int64_t row, int64_t steps, bool add) {
    __asm__ volatile("" : : : "memory");  // what was stored for the tiles is in memory now
    for (int64_t r = 0; r < rows; r += 2 * TILE) {
        const uint32_t* a_here = a + r * a_row;
        bool both = rows - r > TILE;
        for (int lane = 0; lane < tiles * TILE; lane += 2 * TILE) {
            float* c_here = c + r * row + lane;
            bool pair = tiles * TILE - lane > TILE;
            if (both && pair) multiply_tiles<2, 2>(a_here, a_row, b + lane, c_here, row, steps, add);
            else if (both) multiply_tiles<2, 1>(a_here, a_row, b + lane, c_here, row, steps, add);
            else if (pair) multiply_tiles<1, 2>(a_here, a_row, b + lane, c_here, row, steps, add);
            else multiply_tiles<1, 1>(a_here, a_row, b + lane, c_here, row, steps, add);
        }
    }
}
#else
struct WholeTiles {
    ~WholeTiles() {}
};
static inline void multiply_tiles(const uint32_t*, int64_t, int64_t, const uint32_t*, int, float*, int64_t, int64_t, bool) {}
#endif
