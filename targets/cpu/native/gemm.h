// Matrix products of activations with PANEL weights (panel.h). Rows of activations are arranged into blocks once; then each panel of
// 32 columns is multiplied with all of them:
//
//   Rows rows{...};                                   // where the activations are: rows of a matrix, maybe gathered
//   Product product = product_of(way_of(rows.type, weight_type, rows.count), weight_type, rows.count, K);
//   arrange_rows(product, rows, memory);              // product.bytes(), aligned to 64
//   multiply_panel(product, memory, panel, out);      // float32 out[rows][32], room for product.padded_rows()
//
// A thread arranges what it multiplies itself, even if another does the same: lines that another core has just written take longer to
// fetch than to make. Each result is one chain of sums along K, whatever the number of rows or blocks: within one way a row gives the
// same bits alone as it does among others. way_of goes by the number of rows only where bfloat16 rows meet quantised weights and the
// machine has matrix tiles: a few rows are rounded to 8 bits, many meet weights rounded to bfloat16.
#pragma once
#include "gemm_float.h"
#include "gemm_quantised.h"
#include "tiles.h"

// A product of rows[count, K] with a weight.
struct Product {
    Way way;
    Type weight;
    int64_t rows, K;

    int64_t steps() const { return steps_of(way, K); }
    int64_t most() const { return most_rows(way); }
    int64_t blocks() const { return (rows + most() - 1) / most(); }
    // The first row of block b. Two blocks have the same number of rows: a full one and a small one would be slower. Not of tiles.
    int64_t first_row(int64_t b) const {
        return way != TILES && blocks() == 2 && b == 1 ? filled_up(static_cast<int>(rows + 1) / 2) : b * most();
    }
    // Rows of block b as it is laid out: some may be doubled to fill it up.
    int block_rows(int64_t b) const {
        int64_t until = b + 1 < blocks() ? first_row(b + 1) : rows;
        int count = static_cast<int>(until - first_row(b));
        return way == TILES ? count : filled_up(count);
    }
    int64_t padded_rows() const { return first_row(blocks() - 1) + block_rows(blocks() - 1); }
    int64_t block_bytes() const { return steps() * most() * row_step(way); }
    int64_t bytes() const { return way == TILES ? steps() * rows * row_step(way) : (blocks() * block_bytes() + 63) / 64 * 64; }
};

static inline Product product_of(Way way, Type weight, int64_t rows, int64_t K) { return {way, weight, rows, K}; }

// The most bytes that rows of up to `runs` products take together, each of the way that fits its number of rows.
static inline int64_t most_bytes(Type activation, Type weight, int64_t K, int64_t rows, int64_t runs) {
    int64_t of_row = 0, of_run = 0;
    const Way ways[] = {way_of(activation, weight, 1), way_of(activation, weight, rows)};
    for (Way way : ways) {
        Product one = product_of(way, weight, 1, K);
        int64_t row = (one.block_bytes() + one.most() - 1) / one.most(), run = way == TILES ? 0 : one.block_bytes() + 64;
        of_row = row > of_row ? row : of_row;
        of_run = run > of_run ? run : of_run;
    }
    return rows * of_row + runs * of_run;
}

static void arrange_rows(const Product& product, const Rows& rows, char* memory) {
    for (int64_t b = 0; b < product.blocks(); b++, memory += product.block_bytes()) {
#if defined(__AMX_BF16__)
        if (product.way == TILES) {
            arrange_tiles(rows, product.first_row(b), product.block_rows(b), product.K, memory);
            continue;
        }
#endif
        if (product.way <= WIDENED) arrange_floats(product.way, rows, product.first_row(b), product.block_rows(b), product.K, memory);
        else arrange_quantised(product.way, rows, product.first_row(b), product.block_rows(b), product.K, memory);
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
#if defined(__AVX512F__)
        case 3: return multiply_block_of<WAY, 3, PARTS>(x, panel, steps, out, fresh, ahead);
#endif
        case 4: return multiply_block_of<WAY, 4, 2>(x, panel, steps, out, fresh, ahead);
        default: break;
    }
    if constexpr (most_rows(WAY) >= 8) {
        if (rows == 8) return multiply_block_of<WAY, 8, PARTS>(x, panel, steps, out, fresh, ahead);
    }
    if constexpr (most_rows(WAY) >= 12) {
        if (rows == 12) return multiply_block_of<WAY, 12, PARTS>(x, panel, steps, out, fresh, ahead);
        if (rows == 10) return multiply_block_of<WAY, 10, PARTS>(x, panel, steps, out, fresh, ahead);
    }
    if constexpr (most_rows(WAY) >= 6) multiply_block_of<WAY, 6, 2>(x, panel, steps, out, fresh, ahead);
}

static void multiply_block(Way way, int rows, const char* x, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    switch (way) {
        case FLOATS: return multiply_block<FLOATS>(rows, x, panel, steps, out, fresh, ahead);
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
        case PAIRS: return multiply_block<PAIRS>(rows, x, panel, steps, out, fresh, ahead);
#endif
        case BYTES: return multiply_block<BYTES>(rows, x, panel, steps, out, fresh, ahead);
        case NIBBLES: return multiply_block<NIBBLES>(rows, x, panel, steps, out, fresh, ahead);
        case MINIMUMS: return multiply_block<MINIMUMS>(rows, x, panel, steps, out, fresh, ahead);
        default: return multiply_block<WIDENED>(rows, x, panel, steps, out, fresh, ahead);
    }
}

constexpr int64_t STRETCH_BYTES = 64 << 10;  // of a panel that pass all blocks before the next stretch

// Panels that follow each other in memory are best multiplied one after the other: what comes next is fetched while the end of this
// one is multiplied.
static void multiply_panel(const Product& product, const char* memory, const char* panel, float* out) {
#if defined(__AMX_BF16__)
    if (product.way == TILES) return multiply_panel_by_tiles(product.weight, product.rows, product.K, memory, panel, out);
#endif
    int64_t blocks = product.blocks(), steps = product.steps(), step = panel_step(product.way);
    int64_t stretch = blocks > 1 ? STRETCH_BYTES / step : steps;
    for (int64_t at = 0; at < steps; at += stretch) {
        int64_t some = steps - at < stretch ? steps - at : stretch;
        const char* weight = panel + at * step;
        for (int64_t b = 0; b < blocks; b++) {
            int count = product.block_rows(b);
            const char* x = memory + b * product.block_bytes() + at * count * row_step(product.way);
            // One block looks a little ahead; of many, the first two fetch a half of the next stretch each.
            int64_t lines = step / LINE, half = (lines + 1) / 2;
            Ahead ahead{weight + AHEAD_BYTES, lines};
            if (blocks > 1) ahead = b < 2 ? Ahead{weight + some * step + b * half * LINE * some, half} : Ahead{nullptr, 0};
            multiply_block(product.way, count, x, weight, some, out + product.first_row(b) * COLUMNS, at == 0, ahead);
        }
    }
}
