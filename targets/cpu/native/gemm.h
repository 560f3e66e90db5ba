// Matrix products of activations with PANEL weights (panel.h). Rows of activations are arranged into blocks once; then each panel of
// 32 columns is multiplied with all of them:
//
//   Rows rows{...};                                                    // where the activations are: rows of a matrix, maybe gathered
//   Product product = product_of(rows.type, weight_type, rows.count, K);
//   arrange_rows(product, rows, memory, first, last);                  // blocks [first, last) of product.blocks()
//   multiply_panel(product, memory, from, until, panel, out);          // float32 out[until - from][32] of the rows [from, until)
//
// `memory` is product.bytes() bytes, aligned to 64. Each result is one chain of sums along K, whatever the number of rows, blocks or
// threads: a row gives the same bits alone as it does among others.
#pragma once
#include "gemm_float.h"
#include "gemm_quantised.h"

// A product of rows[count, K] with a weight.
struct Product {
    Way way;
    int64_t rows, K;

    int64_t steps() const { return steps_of(way, K); }
    int64_t blocks() const { return (rows + MOST_ROWS - 1) / MOST_ROWS; }
    // Rows of block b as it is laid out: some may be doubled to fill it up.
    int block_rows(int64_t b) const {
        int64_t rest = rows - b * MOST_ROWS;
        return rest >= MOST_ROWS ? MOST_ROWS : filled_up(static_cast<int>(rest));
    }
    int64_t block_bytes() const { return steps() * MOST_ROWS * row_step(way); }
    int64_t bytes() const { return (blocks() * block_bytes() + 63) / 64 * 64; }
};

static inline Product product_of(Type activation, Type weight, int64_t rows, int64_t K) {
    return {way_of(activation, weight), rows, K};
}

static void arrange_rows(const Product& product, const Rows& rows, char* memory, int64_t first, int64_t last) {
    for (int64_t b = first; b < last; b++) {
        char* to = memory + b * product.block_bytes();
        if (product.way <= WIDENED) arrange_floats(product.way, rows, b * MOST_ROWS, product.block_rows(b), product.K, to);
        else arrange_quantised(product.way, rows, b * MOST_ROWS, product.block_rows(b), product.K, to);
    }
}

template <Way WAY, int ROWS, int MANY>
static inline void multiply_block_of(const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    if constexpr (WAY <= WIDENED) multiply_float_rows<WAY, ROWS, MANY>(x, panel, steps, out, fresh, ahead);
    else multiply_quantised_rows<WAY, ROWS, MANY>(x, panel, steps, out, fresh, ahead);
}

template <Way WAY>
static void multiply_block(int rows, const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    switch (rows) {
        case 1: return multiply_block_of<WAY, 1, PARTS>(x, panel, steps, out, fresh, ahead);
        case 2: return multiply_block_of<WAY, 2, PARTS>(x, panel, steps, out, fresh, ahead);
        case 3: return multiply_block_of<WAY, 3, PARTS>(x, panel, steps, out, fresh, ahead);
#if defined(__AVX512F__)
        case 4: return multiply_block_of<WAY, 4, PARTS>(x, panel, steps, out, fresh, ahead);
        case 6: return multiply_block_of<WAY, 6, PARTS>(x, panel, steps, out, fresh, ahead);
        case 8: return multiply_block_of<WAY, 8, PARTS>(x, panel, steps, out, fresh, ahead);
        case 10: return multiply_block_of<WAY, 10, PARTS>(x, panel, steps, out, fresh, ahead);
#endif
        default: return multiply_block_of<WAY, MOST_ROWS, 2>(x, panel, steps, out, fresh, ahead);
    }
}

static void multiply_block(Way way, int rows, const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    switch (way) {
        case FLOATS: return multiply_block<FLOATS>(rows, x, panel, steps, out, fresh, ahead);
#if defined(__AVX512BF16__)
        case PAIRS: return multiply_block<PAIRS>(rows, x, panel, steps, out, fresh, ahead);
#endif
        case BYTES: return multiply_block<BYTES>(rows, x, panel, steps, out, fresh, ahead);
        case NIBBLES: return multiply_block<NIBBLES>(rows, x, panel, steps, out, fresh, ahead);
        case MINIMUMS: return multiply_block<MINIMUMS>(rows, x, panel, steps, out, fresh, ahead);
        default: return multiply_block<WIDENED>(rows, x, panel, steps, out, fresh, ahead);
    }
}

constexpr int64_t STRETCH_BYTES = 64 << 10;  // of a panel that pass all blocks before the next stretch
constexpr int64_t AHEAD_BYTES = 8 << 10;

// `from` is a multiple of MOST_ROWS. `out` has room for (until - from) rounded up to a multiple of MOST_ROWS rows. Panels that follow
// each other in memory are best multiplied one after the other: what comes next is fetched while the end of this one is multiplied.
static void multiply_panel(const Product& product, const char* memory, int64_t from, int64_t until, const char* panel, float* out) {
    int64_t first = from / MOST_ROWS, blocks = (until + MOST_ROWS - 1) / MOST_ROWS - first, steps = product.steps();
    int64_t step = panel_step(product.way), stretch = blocks > 1 ? STRETCH_BYTES / step : steps;
    for (int64_t at = 0; at < steps; at += stretch) {
        int64_t some = steps - at < stretch ? steps - at : stretch;
        const char* weight = panel + at * step;
        for (int64_t b = 0; b < blocks; b++) {
            int count = product.block_rows(first + b);
            const char* x = memory + (first + b) * product.block_bytes() + at * count * row_step(product.way);
            // One block looks a little ahead; of many, each fetches its share of the next stretch.
            int64_t share = (step + blocks - 1) / blocks;
            Ahead ahead = blocks > 1 ? Ahead{weight + some * step + b * share * some, share} : Ahead{weight + AHEAD_BYTES, step};
            multiply_block(product.way, count, x, weight, some, out + b * MOST_ROWS * COLUMNS, at == 0, ahead);
        }
    }
}
