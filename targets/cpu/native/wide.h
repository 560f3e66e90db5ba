// Vectors of WIDE doubles, for the few places where float32 would not do.
#pragma once
#include "vector.h"

constexpr int WIDE = WIDTH / 2;
typedef double Wide __attribute__((vector_size(WIDE * 8)));
typedef int64_t WideBits __attribute__((vector_size(WIDE * 8)));
typedef float WideFloats __attribute__((vector_size(WIDE * 4)));

static inline Wide choose(WideBits condition, Wide then, Wide otherwise) {
    return (Wide)((condition & (WideBits)then) | (~condition & (WideBits)otherwise));
}

// The nearest whole number, for magnitudes below 2^51: adding 1.5 * 2^52 leaves no room for a fraction.
static constexpr double WHOLE = 6755399441055744.0;
static inline Wide to_whole(Wide x) { return (x + WHOLE) - WHOLE; }
// A whole number's low bits, two's complement.
static inline WideBits to_bits(Wide whole) { return (WideBits)(whole + WHOLE); }

// x - a * b, rounded once
static inline Wide minus_product(Wide x, Wide a, double b) {
    Wide result;
    for (int i = 0; i < WIDE; i++) result[i] = __builtin_fma(-a[i], b, x[i]);
    return result;
}

static inline Wide widened(const float* from) {
    WideFloats values;
    __builtin_memcpy(&values, from, sizeof values);
    return __builtin_convertvector(values, Wide);
}
static inline void narrowed(Wide x, float* to) {
    WideFloats values = __builtin_convertvector(x, WideFloats);
    __builtin_memcpy(to, &values, sizeof values);
}
