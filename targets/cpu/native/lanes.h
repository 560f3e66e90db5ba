// Loops over n elements, a vector at a time, with the last vector part full; copies; and how work on rows is shared out.
#pragma once
#include "vector.h"

// How many lanes of a vector hold elements: all of them, or the first few.
struct Full {
    static constexpr int count = WIDTH;
};
struct Part {
    int count;
};
template <class T> static inline Vec load(const T* p, Full) { return load(p); }
template <class T> static inline Vec load(const T* p, Part part) { return load_some(p, part.count); }
template <class T> static inline void store(T* p, Vec x, Full) { store(p, x); }
template <class T> static inline void store(T* p, Vec x, Part part) { store_some(p, x, part.count); }

// body(first, lanes) for first = 0, WIDTH, ...
template <class Body> static inline void for_vectors(int64_t n, Body body) {
    int64_t k = 0;
    for (; k + WIDTH <= n; k += WIDTH) body(k, Full{});
    if (k < n) body(k, Part{static_cast<int>(n - k)});
}

static inline void copy_bytes(void* to, const void* from, int64_t bytes) {
    char* target = static_cast<char*>(to);
    const char* source = static_cast<const char*>(from);
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(target + at), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + at)));
    }
    for (; at + 2 <= bytes; at += 2) *reinterpret_cast<uint16_t*>(target + at) = *reinterpret_cast<const uint16_t*>(source + at);
    if (at < bytes) target[at] = source[at];
}

static inline int64_t size_of(Type type) { return type == I64 ? 8 : type == F32 || type == I32 ? 4 : type == BF16 || type == F16 ? 2 : 1; }

// body(row, first, last) over this thread's share of rows x columns; a row is cut at multiples of 256 columns only.
template <class Body> static inline void share_rows(const Team& team, int64_t rows, int64_t columns, Body body) {
    constexpr int64_t PIECE = 256;
    int64_t pieces = (columns + PIECE - 1) / PIECE, first, last;
    team.share(rows * pieces, 1, first, last);
    while (first < last) {
        int64_t row = first / pieces, from = first % pieces;
        int64_t to = from + (last - first) < pieces ? from + (last - first) : pieces;
        body(row, from * PIECE, to * PIECE < columns ? to * PIECE : columns);
        first += to - from;
    }
}
