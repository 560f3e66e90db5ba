// silu(gate) * up, row by row. The headers are tokenspeed's own (targets/cpu/native).
#include "activation.h"
#include "lanes.h"

template <class T> static void gated(const Tensor& gate, const Tensor& up, const Tensor& out, Team& team) {
    share_rows(team, gate.shape[0], gate.shape[1], [&](int64_t row, int64_t first, int64_t last) {
        const T *g = gate.at<T>(row, first), *u = up.at<T>(row, first);
        T* to = out.at<T>(row, first);
        for_vectors(last - first, [&](int64_t k, auto lanes) {
            // rounded before the product, as eager models do
            store(to + k, rounded<T>(silu(load(g + k, lanes))) * load(u + k, lanes), lanes);
        });
    });
}

static bool is_like(const Tensor& t, const Tensor& other) {
    return is_float(t) && t.rank == 2 && t.strides[1] == 1 && t.layout == ROW_MAJOR && t.type == other.type &&
           t.shape[0] == other.shape[0] && t.shape[1] == other.shape[1];
}

CHECK(example_gated_silu) {
    if (call.inputs != 2 || call.outputs != 1) return "(gate, up) -> out";
    for (int i = 0; i < 3; i++) {
        if (!is_like(call.tensors[i], call.input(0)))
            return "gate, up and out [rows, features] of one shape and type, float32 or bfloat16, features side by side";
    }
    return nullptr;
}

KERNEL(example_gated_silu, "activation:choice(silu)") {
    if (call.input(0).type == F32) gated<float>(call.input(0), call.input(1), call.output(0), team);
    else gated<bf16>(call.input(0), call.input(1), call.output(0), team);
}
