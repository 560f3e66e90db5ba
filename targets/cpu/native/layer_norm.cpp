// Layer norm (Ba et al. 2016, arXiv:1607.06450), everything in float32 and rounded once. One task is one row of features.
#include "vector.h"

template <class T> static Vec part(const T* p, int64_t n) {
    return n >= WIDTH ? load(p) : load_some(p, static_cast<int>(n));
}

template <class T> static void normalise(const T* x, const T* weight, const T* bias, T* out, int64_t n, float eps) {
    Vec total = zero();
    for (int64_t k = 0; k < n; k += WIDTH) total = total + part(x + k, n - k);
    float average = sum(total) / static_cast<float>(n);
    Vec mean = all(average);
    Vec squares = zero();
    int64_t whole = n / WIDTH * WIDTH;
    for (int64_t k = 0; k < whole; k += WIDTH) {
        Vec a = load(x + k) - mean;
        squares = fma(a, a, squares);
    }
    float variance = sum(squares);
    for (int64_t k = whole; k < n; k++) {  // lanes past the end would count as (0 - mean)
        float a = to_float(x[k]) - average;
        variance += a * a;
    }
    Vec scale = all(1.0f) / vsqrt(all(variance / static_cast<float>(n) + eps));
    for (int64_t k = 0; k < n; k += WIDTH) {
        Vec a = (part(x + k, n - k) - mean) * scale * part(weight + k, n - k);
        if (bias) a = a + part(bias + k, n - k);
        if (n - k >= WIDTH) store(out + k, a); else store_some(out + k, a, static_cast<int>(n - k));
    }
}

template <class T> static void layer_norm(const Call& call, Team& team) {
    const Tensor &x = call.input(0), &out = call.output(0);
    const T* bias = call.inputs > 2 ? call.input(2).at<T>() : nullptr;
    int64_t features = x.shape[x.rank - 1], heads = x.rank == 3 ? x.shape[1] : 1, first, last;
    team.share(x.shape[0] * heads, 1, first, last);
    for (int64_t at = first; at < last; at++) {
        const T* from = x.at<T>(at / heads) + (x.rank == 3 ? at % heads * x.strides[1] : 0);
        T* to = out.at<T>(at / heads) + (out.rank == 3 ? at % heads * out.strides[1] : 0);
        normalise(from, call.input(1).at<T>(), bias, to, features, static_cast<float>(call.number(0)));
    }
}

CHECK(layer_norm) {
    if (call.inputs < 2 || call.inputs > 3 || call.outputs != 1) return "(x, weight[, bias]) -> out";
    const Tensor &x = call.input(0), &out = call.output(0);
    if (!is_float(x) || out.type != x.type) return "x and out of one type, float32 or bfloat16";
    if ((x.rank != 2 && x.rank != 3) || out.rank != x.rank || x.strides[x.rank - 1] != 1 || out.strides[x.rank - 1] != 1)
        return "x and out of rank 2 or 3 with features side by side";
    for (int i = 0; i < x.rank; i++)
        if (x.shape[i] != out.shape[i]) return "x and out of one shape";
    if (x.shape[x.rank - 1] < 1 || !(call.number(0) > 0)) return "features, and eps above 0";
    for (int i = 1; i < call.inputs; i++) {
        const Tensor& t = call.input(i);
        if (t.type != x.type || t.rank != 1 || t.strides[0] != 1 || t.shape[0] != x.shape[x.rank - 1]) return "weight[features] and bias[features]";
    }
    return nullptr;
}
KERNEL(layer_norm, "eps:number") {
    if (call.input(0).type == F32) layer_norm<float>(call, team); else layer_norm<bf16>(call, team);
}
