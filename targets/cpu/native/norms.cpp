// RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467), alone and after a residual addition. One task is one row of features.
#include "vector.h"

struct Style {
    float eps;
    bool cast_before_weight, one_plus_weight;
};

// x * rsqrt(mean(x^2) + eps) * weight over n features; statistics in float32.
template <class T> static void normalise(const T* x, const T* weight, T* out, int64_t n, Style style) {
    Vec squares = zero(), more = zero();
    int64_t k = 0;
    for (; k + 2 * WIDTH <= n; k += 2 * WIDTH) {
        Vec a = load(x + k), b = load(x + k + WIDTH);
        squares = fma(a, a, squares);
        more = fma(b, b, more);
    }
    for (; k < n; k += WIDTH) {
        Vec a = n - k >= WIDTH ? load(x + k) : load_some(x + k, static_cast<int>(n - k));
        squares = fma(a, a, squares);
    }
    float mean = sum(squares + more) / static_cast<float>(n);
    Vec scale = all(1.0f) / vsqrt(all(mean + style.eps));
    Vec plus = all(style.one_plus_weight ? 1.0f : 0.0f);
    for (k = 0; k < n; k += WIDTH) {
        int lanes = n - k >= WIDTH ? WIDTH : static_cast<int>(n - k);
        Vec a = lanes == WIDTH ? load(x + k) : load_some(x + k, lanes);
        Vec w = (lanes == WIDTH ? load(weight + k) : load_some(weight + k, lanes)) + plus;
        a = a * scale;
        if (style.cast_before_weight) {
            a = rounded<T>(a);
            w = rounded<T>(w);
        }
        if (lanes == WIDTH) store(out + k, a * w); else store_some(out + k, a * w, lanes);
    }
}

template <class T> static void add(const T* x, const T* residual, T* out, int64_t n) {
    int64_t k = 0;
    for (; k + WIDTH <= n; k += WIDTH) store(out + k, load(x + k) + load(residual + k));
    int rest = static_cast<int>(n - k);
    if (rest) store_some(out + k, load_some(x + k, rest) + load_some(residual + k, rest), rest);
}

static Style style_of(const Call& call) { return {static_cast<float>(call.number(0)), call.flag(1), call.flag(2)}; }

template <class T> static void rms_norm(const Call& call, Team& team) {
    const Tensor &x = call.input(0), &weight = call.input(1), &out = call.output(0);
    int64_t features = x.shape[x.rank - 1], heads = x.rank == 3 ? x.shape[1] : 1, first, last;
    team.share(x.shape[0] * heads, 1, first, last);
    for (int64_t at = first; at < last; at++) {
        int64_t row = at / heads, head = at % heads;
        const T* from = x.at<T>(row) + (x.rank == 3 ? head * x.strides[1] : 0);
        T* to = out.at<T>(row) + (out.rank == 3 ? head * out.strides[1] : 0);
        normalise(from, weight.at<T>(), to, features, style_of(call));
    }
}

template <class T> static void add_rms_norm(const Call& call, Team& team) {
    const Tensor &x = call.input(0), &residual = call.input(1), &weight = call.input(2);
    const Tensor &total = call.output(0), &out = call.output(1);
    int64_t first, last;
    team.share(x.shape[0], 1, first, last);
    for (int64_t row = first; row < last; row++) {
        add(x.at<T>(row), residual.at<T>(row), total.at<T>(row), x.shape[1]);
        normalise(total.at<T>(row), weight.at<T>(), out.at<T>(row), x.shape[1], style_of(call));
    }
}

#define NORM_ATTRIBUTES "eps:number cast_before_weight:flag=1 one_plus_weight:flag=0"

CHECK(rms_norm) {
    if (call.inputs != 2 || call.outputs != 1) return "(x, weight) -> out";
    const Tensor &x = call.input(0), &weight = call.input(1), &out = call.output(0);
    if (!is_float(x) || weight.type != x.type || out.type != x.type) return "x, weight and out of one type, float32 or bfloat16";
    if ((x.rank != 2 && x.rank != 3) || out.rank != x.rank || x.strides[x.rank - 1] != 1 || out.strides[x.rank - 1] != 1)
        return "x and out of rank 2 or 3 with features side by side";
    for (int i = 0; i < x.rank; i++)
        if (x.shape[i] != out.shape[i]) return "x and out of one shape";
    if (weight.rank != 1 || weight.shape[0] != x.shape[x.rank - 1]) return "weight[features]";
    return nullptr;
}
KERNEL(rms_norm, NORM_ATTRIBUTES) {
    if (call.input(0).type == F32) rms_norm<float>(call, team); else rms_norm<bf16>(call, team);
}

CHECK(add_rms_norm) {
    if (call.inputs != 3 || call.outputs != 2) return "(x, residual, weight) -> sum, out";
    for (int i = 0; i < 5; i++) {
        const Tensor& t = call.tensors[i];
        if (!is_float(t) || t.type != call.input(0).type) return "all operands of one type, float32 or bfloat16";
        if (i == 2) continue;
        if (t.rank != 2 || t.strides[1] != 1 || t.shape[0] != call.input(0).shape[0] || t.shape[1] != call.input(0).shape[1])
            return "x, residual, sum and out of one shape [rows, features], features side by side";
    }
    if (call.input(2).rank != 1 || call.input(2).shape[0] != call.input(0).shape[1]) return "weight[features]";
    return nullptr;
}
KERNEL(add_rms_norm, NORM_ATTRIBUTES) {
    if (call.input(0).type == F32) add_rms_norm<float>(call, team); else add_rms_norm<bf16>(call, team);
}
