// Elementwise functions of operands of equal shape and any strides. Each operation is rounded to the operands' type, as in eager
// models.
#include "elementary.h"
#include "lanes.h"

// Operands as rows x columns: `columns` elements side by side in all of them, the dimensions before that counted by `rows`.
struct Walk {
    int64_t rows = 1, columns = 1;
    int outer;

    explicit Walk(const Call& call) : outer(call.tensors[0].rank) {
        while (outer > 0 && is_inner(call, outer - 1)) columns *= call.tensors[0].shape[--outer];
        for (int i = 0; i < outer; i++) rows *= call.tensors[0].shape[i];
    }

    bool is_inner(const Call& call, int dimension) const {
        for (int i = 0; i < call.inputs + call.outputs; i++)
            if (call.tensors[i].strides[dimension] != columns) return false;
        return true;
    }

    template <class T> T* row(const Tensor& t, int64_t row) const {
        int64_t offset = 0;
        for (int i = outer - 1; i >= 0; i--) {
            offset += row % t.shape[i] * t.strides[i];
            row /= t.shape[i];
        }
        return static_cast<T*>(t.data) + offset;
    }
};

template <class T, class Function> static void map_one(const Call& call, Team& team, Function function) {
    Walk walk(call);
    share_rows(team, walk.rows, walk.columns, [&](int64_t row, int64_t first, int64_t last) {
        const T* a = walk.row<T>(call.input(0), row) + first;
        T* out = walk.row<T>(call.output(0), row) + first;
        for_vectors(last - first, [&](int64_t k, auto lanes) { store(out + k, function(load(a + k, lanes)), lanes); });
    });
}

template <class T, class Function> static void map_two(const Call& call, Team& team, Function function) {
    Walk walk(call);
    share_rows(team, walk.rows, walk.columns, [&](int64_t row, int64_t first, int64_t last) {
        const T *a = walk.row<T>(call.input(0), row) + first, *b = walk.row<T>(call.input(1), row) + first;
        T* out = walk.row<T>(call.output(0), row) + first;
        for_vectors(last - first, [&](int64_t k, auto lanes) { store(out + k, function(load(a + k, lanes), load(b + k, lanes)), lanes); });
    });
}

template <class From, class To> static void convert(const Call& call, Team& team) {
    Walk walk(call);
    share_rows(team, walk.rows, walk.columns, [&](int64_t row, int64_t first, int64_t last) {
        const From* a = walk.row<From>(call.input(0), row) + first;
        To* out = walk.row<To>(call.output(0), row) + first;
        for_vectors(last - first, [&](int64_t k, auto lanes) { store(out + k, load(a + k, lanes), lanes); });
    });
}

template <class T> static void move(const Call& call, Team& team) {
    Walk walk(call);
    share_rows(team, walk.rows, walk.columns, [&](int64_t row, int64_t first, int64_t last) {
        copy_bytes(walk.row<T>(call.output(0), row) + first, walk.row<T>(call.input(0), row) + first, (last - first) * sizeof(T));
    });
}

static bool one_shape(const Call& call) {
    for (int i = 0; i < call.inputs + call.outputs; i++) {
        const Tensor &t = call.tensors[i], &first = call.tensors[0];
        if (t.rank != first.rank || t.layout != ROW_MAJOR) return false;
        for (int k = 0; k < t.rank; k++)
            if (t.shape[k] != first.shape[k]) return false;
    }
    return true;
}

static const char* check_floats(const Call& call, int inputs) {
    if (call.inputs != inputs || call.outputs != 1) return inputs == 1 ? "(a) -> out" : "(a, b) -> out";
    for (int i = 0; i <= inputs; i++)
        if (!is_float(call.tensors[i]) || call.tensors[i].type != call.tensors[0].type) return "operands of one type, float32 or bfloat16";
    return one_shape(call) ? nullptr : "operands of one shape";
}

CHECK(add) { return check_floats(call, 2); }
KERNEL(add, "") {
    auto function = [](Vec a, Vec b) { return a + b; };
    if (call.input(0).type == F32) map_two<float>(call, team, function); else map_two<bf16>(call, team, function);
}

CHECK(mul) { return check_floats(call, 2); }
KERNEL(mul, "") {
    auto function = [](Vec a, Vec b) { return a * b; };
    if (call.input(0).type == F32) map_two<float>(call, team, function); else map_two<bf16>(call, team, function);
}

CHECK(scale) { return check_floats(call, 1); }
KERNEL(scale, "factor:number") {
    auto function = [factor = all(static_cast<float>(call.number(0)))](Vec a) { return a * factor; };
    if (call.input(0).type == F32) map_one<float>(call, team, function); else map_one<bf16>(call, team, function);
}

CHECK(softcap) {
    if (!(call.number(0) > 0)) return "a cap above 0";
    return check_floats(call, 1);
}
template <class T> static void softcap(const Call& call, Team& team) {
    Vec cap = all(static_cast<float>(call.number(0)));
    map_one<T>(call, team, [cap](Vec x) { return rounded<T>(hyperbolic_tangent(rounded<T>(x / cap))) * cap; });
}
KERNEL(softcap, "cap:number") {
    if (call.input(0).type == F32) softcap<float>(call, team); else softcap<bf16>(call, team);
}

CHECK(copy) {
    if (call.inputs != 1 || call.outputs != 1) return "(a) -> out";
    const Tensor &a = call.input(0), &out = call.output(0);
    if (a.type > I8 || (a.type != out.type && !(is_float(a) && is_float(out)))) return "out of the type of a, or both float32 or bfloat16";
    return one_shape(call) ? nullptr : "operands of one shape";
}
KERNEL(copy, "") {
    Type from = call.input(0).type, to = call.output(0).type;
    if (from == to) {
        switch (size_of(from)) {
            case 8: return move<int64_t>(call, team);
            case 4: return move<int32_t>(call, team);
            case 2: return move<int16_t>(call, team);
            default: return move<int8_t>(call, team);
        }
    }
    if (from == F32) convert<float, bf16>(call, team); else convert<bf16, float>(call, team);
}
