// What the kernels of the sample program share. The bits are those of plans/sampling.py.
#pragma once
#include "abi.h"

enum Feature : int32_t { RANDOM = 1, FILTERS = 2, PENALTIES = 4, BIAS = 8, MINIMUM_TOKENS = 16, LOGPROBS = 32 };
static constexpr int32_t ADJUSTMENTS = PENALTIES | BIAS | MINIMUM_TOKENS;

// What the logit rows ask for. A padded row (slot -1) asks for nothing.
struct Asked {
    const int32_t* slots;
    const int32_t* features;
    int64_t rows;

    int32_t of(int64_t row) const { return slots[row] < 0 ? 0 : features[slots[row]]; }
    int64_t count(int32_t bits) const {
        int64_t found = 0;
        for (int64_t row = 0; row < rows; row++) found += (of(row) & bits) != 0;
        return found;
    }
    // The row that is n-th (from 0) among those that ask for one of the bits.
    int64_t nth(int32_t bits, int64_t n) const {
        int64_t row = 0;
        while (!(of(row) & bits) || n--) row++;
        return row;
    }
};

static inline Asked asked(const Call& call, int slots) {
    const Tensor& rows = call.input(slots);
    return {rows.at<int32_t>(), call.input(slots + 1).at<int32_t>(), rows.shape[0]};
}

static inline bool is_vector(const Tensor& t, Type type, int64_t extent) {
    return t.type == type && t.rank == 1 && t.shape[0] == extent && t.strides[0] == 1;
}
// Whether these inputs all are.
template <class... Inputs> static inline bool are_vectors(const Call& call, Type type, int64_t extent, Inputs... inputs) {
    return (is_vector(call.input(inputs), type, extent) && ...);
}
static inline bool is_matrix(const Tensor& t, Type type, int64_t rows, int64_t columns) {
    return t.type == type && t.rank == 2 && t.shape[0] == rows && t.shape[1] == columns && t.strides[1] == 1;
}
static inline bool is_logits(const Tensor& t) {
    return is_float(t) && t.rank == 2 && t.shape[1] > 0 && t.shape[1] < INT32_MAX && t.strides[1] == 1;
}

// ln x, by the x87 unit: there is no libm here.
static inline double natural_logarithm(double x) {
    long double result;
    __asm__("fldln2\n\tfxch\n\tfyl2x" : "=t"(result) : "0"(static_cast<long double>(x)) : "st(1)");
    return static_cast<double>(result);
}
