// The first of the largest values of a row.
#pragma once
#include "lanes.h"
#include "masks.h"

// `index` is -1 where nothing was looked at; `value` is NaN when any value was.
struct Largest {
    float value;
    int32_t index;

    bool is_finite() const { return __builtin_fabsf(value) < __builtin_inff(); }
    // Of two parts of a row, this one in front of `other`.
    void join(Largest other) {
        if (other.index < 0 || value != value) return;
        if (index < 0 || other.value != other.value || other.value > value) *this = other;
    }
};

// Columns [first, last) of a row. Two steps, so that the hot loop keeps no indices: the largest value of each block, then its
// first place in the first block that has it.
template <class T> static Largest find_largest(const T* row, int64_t first, int64_t last) {
    constexpr int64_t BLOCK = 2048;
    const Vec lowest = all(-__builtin_inff());
    float best = -__builtin_inff();
    int64_t block = first;
    uint32_t unordered = 0;
    for (int64_t start = first; start < last; start += BLOCK) {
        int64_t count = last - start < BLOCK ? last - start : BLOCK, k = 0;
        const T* x = row + start;
        Vec tops[4] = {lowest, lowest, lowest, lowest};
        for (; k + 4 * WIDTH <= count; k += 4 * WIDTH) {
            Vec a = load(x + k), b = load(x + k + WIDTH), c = load(x + k + 2 * WIDTH), d = load(x + k + 3 * WIDTH);
            unordered |= lanes_unordered(a, b) | lanes_unordered(c, d);
            tops[0] = vmax(a, tops[0]);
            tops[1] = vmax(b, tops[1]);
            tops[2] = vmax(c, tops[2]);
            tops[3] = vmax(d, tops[3]);
        }
        float top = largest(vmax(vmax(tops[0], tops[1]), vmax(tops[2], tops[3])));
        for (; k < count; k++) {
            float value = to_float(x[k]);
            unordered |= value != value;
            if (value > top) top = value;
        }
        if (unordered) return {__builtin_nanf(""), static_cast<int32_t>(start)};
        if (top > best) {
            best = top;
            block = start;
        }
    }
    int64_t k = block;
    for (; k + WIDTH <= last; k += WIDTH) {
        uint32_t here = lanes_equal(load(row + k), all(best));
        if (here) return {best, static_cast<int32_t>(k + __builtin_ctz(here))};
    }
    while (k < last && to_float(row[k]) != best) k++;
    return {best, static_cast<int32_t>(k < last ? k : first)};
}
