// Activations of feed-forward blocks, plain and gated.
#include "activation.h"
#include "lanes.h"

template <Activation kind, class T> static void gated(const Tensor& gate, const Tensor& up, const Tensor& out, Team& team) {
    share_rows(team, gate.shape[0], gate.shape[1], [&](int64_t row, int64_t first, int64_t last) {
        const T *g = gate.at<T>(row, first), *u = up.at<T>(row, first);
        T* to = out.at<T>(row, first);
        for_vectors(last - first, [&](int64_t k, auto lanes) {
            // rounded before the product, as eager models do
            store(to + k, rounded<T>(activate<kind>(load(g + k, lanes))) * load(u + k, lanes), lanes);
        });
    });
}

template <Activation kind, class T> static void plain(const Tensor& x, const Tensor& out, Team& team) {
    share_rows(team, x.shape[0], x.shape[1], [&](int64_t row, int64_t first, int64_t last) {
        const T* from = x.at<T>(row, first);
        T* to = out.at<T>(row, first);
        for_vectors(last - first, [&](int64_t k, auto lanes) { store(to + k, activate<kind>(load(from + k, lanes)), lanes); });
    });
}

static bool is_alike(const Tensor& a, const Tensor& b) {
    return a.type == b.type && a.rank == b.rank && a.shape[0] == b.shape[0] && a.shape[1] == b.shape[1];
}
static bool is_matrix(const Tensor& t) { return is_float(t) && t.rank == 2 && t.strides[1] == 1 && t.layout == ROW_MAJOR; }

CHECK(gated_activation) {
    if (call.inputs != 2 || call.outputs != 1) return "(gate, up) -> out";
    for (int i = 0; i < 3; i++) {
        if (!is_matrix(call.tensors[i]) || !is_alike(call.tensors[i], call.input(0)))
            return "gate, up and out [rows, features] of one shape and type, float32 or bfloat16, features side by side";
    }
    return nullptr;
}
KERNEL(gated_activation, "activation:choice(silu,gelu,gelu_tanh,relu,relu2)") {
    for_activation(call.integer(0), [&](auto kind) {
        if (call.input(0).type == F32) gated<kind.value, float>(call.input(0), call.input(1), call.output(0), team);
        else gated<kind.value, bf16>(call.input(0), call.input(1), call.output(0), team);
    });
}

CHECK(activation) {
    if (call.inputs != 1 || call.outputs != 1) return "(x) -> out";
    if (!is_matrix(call.input(0)) || !is_matrix(call.output(0)) || !is_alike(call.input(0), call.output(0)))
        return "x and out [rows, features] of one shape and type, float32 or bfloat16, features side by side";
    return nullptr;
}
KERNEL(activation, "kind:choice(silu,gelu,gelu_tanh,relu,relu2)") {
    for_activation(call.integer(0), [&](auto kind) {
        if (call.input(0).type == F32) plain<kind.value, float>(call.input(0), call.output(0), team);
        else plain<kind.value, bf16>(call.input(0), call.output(0), team);
    });
}
