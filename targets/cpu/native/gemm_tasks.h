// How kernels cut matrix products (gemm.h) into tasks, and write a panel of results where it belongs.
#pragma once
#include "gemm.h"

static constexpr int64_t MOST_CHUNK = 512;  // whatever the way

// Rows that a task takes: multiples of `step`, which is one of most_rows, and up to `bytes` of arranged activations, which then stay
// in the second-level cache (machines with tiles have 2 MiB).
struct Chunks {
    int64_t step, least, most, bytes;
};
static inline Chunks chunks_of(Way way) {
    if (way == TILES) return {32, 64, MOST_CHUNK, 1 << 20};
    return {24, 48, 240, 512 << 10};
}

static inline int64_t most_rows_of_chunk(Way way, Type weight, int64_t K) {
    const Chunks chunks = chunks_of(way);
    int64_t rows = chunks.bytes / product_of(way, weight, chunks.step, K).bytes() * chunks.step;
    return rows > chunks.most ? chunks.most : rows < chunks.least ? chunks.least : rows;
}

// Tasks [first, last) of the `turn`-th turn: at first each thread gets a long run of panels side by side, which memory reads fastest,
// then ever shorter ones, so that no thread waits for another that lost its core (guided self-scheduling, Polychronopoulos 1987).
static inline void tasks_of_turn(int64_t turn, int64_t total, int64_t threads, int64_t& first, int64_t& last) {
    int64_t start = 0, size = 0;
    for (;; turn -= threads, start += threads * size) {
        size = (total - start) / (2 * threads);
        if (size < 1) size = 1;
        if (turn < threads || size == 1) break;
    }
    first = start + turn * size < total ? start + turn * size : total;
    last = first + size < total ? first + size : total;
}

// `count` elements of a bias from `first` on, side by side, as COLUMNS floats filled up with zeros.
static inline void read_bias(const Tensor& bias, int64_t first, int count, float* to) {
    for (int c = 0; c < COLUMNS; c++) {
        if (c >= count) to[c] = 0;
        else to[c] = bias.type == F32 ? static_cast<float*>(bias.data)[first + c] : to_float(static_cast<bf16*>(bias.data)[first + c]);
    }
}

// rows x COLUMNS results, of which the first `columns` are kept, plus the bias (may be null).
template <class T>
static inline void put_rows(const float* from, int64_t rows, const float* bias, T* to, int64_t stride, int columns) {
    for (int64_t r = 0; r < rows; r++, from += COLUMNS, to += stride) {
        for (int c = 0; c < columns; c += WIDTH) {
            Vec value = load(from + c);
            if (bias) value = value + load(bias + c);
            if (columns - c >= WIDTH) store(to + c, value); else store_some(to + c, value, columns - c);
        }
    }
}
