// Matrix products of activations with PANEL weights (panel.h). Rows of activations are arranged into blocks once; then each panel of
// 32 columns is multiplied with all of them:
//
//   Rows rows{...};                                         // where the activations are: rows of a matrix, maybe gathered
//   Product product = product_of(rows.type, weight, rows.count, K);
//   arrange_rows(product, rows, memory, first, last);       // blocks [first, last) of product.blocks(); product.bytes() of memory
//   multiply_panel(product, memory, from, until, panel, out, ahead);   // float32 out[until - from][32] of the rows [from, until)
//
// Each result is one chain of sums along K, whatever the number of rows, blocks or threads: a row gives the same bits alone as it
// does among others.
#pragma once
#include "gemm_float.h"

// A product of rows[count, K] with a weight of a type.
struct Product {
    Type weight;
    Way way;
    int64_t rows, K;

    int64_t steps() const { return steps_of(way, K); }
    int64_t blocks() const { return (rows + MOST_ROWS - 1) / MOST_ROWS; }
    // Rows of block b as it is laid out: some may be doubled to fill it up.
    int block_rows(int64_t b) const {
        int64_t rest = rows - b * MOST_ROWS;
        return rest >= MOST_ROWS ? MOST_ROWS : filled_up(static_cast<int>(rest));
    }
    int64_t block_bytes() const { return steps() * MOST_ROWS * step_bytes(way); }
    int64_t bytes() const { return (blocks() * block_bytes() + 127) / 64 * 64; }
};

static inline Product product_of(Type activation, Type weight, int64_t rows, int64_t K) {
    return {weight, way_of(activation, weight), rows, K};
}

static void arrange_rows(const Product& product, const Rows& rows, char* memory, int64_t first, int64_t last) {
    for (int64_t b = first; b < last; b++) {
        arrange_floats(product.way, rows, b * MOST_ROWS, product.block_rows(b), product.K, memory + b * product.block_bytes());
    }
}

// `from` is a multiple of MOST_ROWS. `out` has room for (until - from) rounded up to a multiple of MOST_ROWS rows.
static void multiply_panel(const Product& product, const char* memory, int64_t from, int64_t until, const char* panel, float* out) {
    int64_t first = from / MOST_ROWS, last = (until + MOST_ROWS - 1) / MOST_ROWS, steps = product.steps();
    // Of many rows, so much of the panel at a time as stays in the first-level cache while all rows pass.
    int64_t stretch = last - first > 1 ? STRETCH : steps;
    for (int64_t at = 0; at < steps; at += stretch) {
        int64_t some = steps - at < stretch ? steps - at : stretch;
        for (int64_t b = first; b < last; b++) {
            int count = product.block_rows(b);
            const char* x = memory + b * product.block_bytes() + at * count * step_bytes(product.way);
            multiply_block(product.way, count, x, panel + at * STEP_BYTES, some, out + (b - first) * MOST_ROWS * COLUMNS, at == 0);
        }
    }
}
