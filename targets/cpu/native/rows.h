// Rows of activations: those of a matrix, or some of them by index.
#pragma once
#include "vector.h"

struct Rows {
    const char* data;
    int64_t stride_bytes;
    const int32_t* index;  // null: rows 0, 1, ...
    int64_t count;
    Type type;  // F32 or BF16

    Rows part(int64_t first, int64_t many) const {
        return index ? Rows{data, stride_bytes, index + first, many, type} : Rows{data + first * stride_bytes, stride_bytes, index, many, type};
    }
    template <class T> const T* at(int64_t i) const {
        return reinterpret_cast<const T*>(data + (index ? index[i] : i) * stride_bytes);
    }
};
