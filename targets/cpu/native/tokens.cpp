// Rows in and out of the model: the tokens of a step, and the hidden rows whose logits are wanted.
#include "lanes.h"

CHECK(take_last_tokens) {
    if (call.inputs != 3 || call.outputs != 1) return "(token_ids, row_slots, last_tokens) -> tokens";
    for (int i = 0; i < 4; i++) {
        const Tensor& t = call.tensors[i];
        if (t.type != I32 || t.rank != 1 || t.strides[0] != 1) return "four dense vectors of int32";
        if (i != 2 && t.shape[0] != call.input(0).shape[0]) return "token_ids, row_slots and tokens of one length";
    }
    return call.input(2).shape[0] > 0 ? nullptr : "last_tokens[slots]";
}
KERNEL(take_last_tokens, "") {
    const int32_t *ids = call.input(0).at<int32_t>(), *slots = call.input(1).at<int32_t>(), *last = call.input(2).at<int32_t>();
    int32_t* tokens = call.output(0).at<int32_t>();
    int64_t first, stop;
    team.share(call.input(0).shape[0], 64, first, stop);
    for (int64_t row = first; row < stop; row++) tokens[row] = slots[row] < 0 ? 0 : ids[row] < 0 ? last[slots[row]] : ids[row];
}

CHECK(gather_rows) {
    if (call.inputs != 2 || call.outputs != 1) return "(x, logit_rows) -> rows";
    const Tensor &x = call.input(0), &rows = call.input(1), &out = call.output(0);
    if (rows.type != I32 || rows.rank != 1 || rows.strides[0] != 1) return "logit_rows[L] of int32";
    if (x.type != out.type || x.type > I8) return "x and out of one type";
    if (x.rank != 2 || out.rank != 2 || x.strides[1] != 1 || out.strides[1] != 1 || x.shape[1] != out.shape[1])
        return "x[R, H] and out[L, H] with features side by side";
    return rows.shape[0] == out.shape[0] ? nullptr : "as many rows out as logit_rows";
}
KERNEL(gather_rows, "") {
    const Tensor &x = call.input(0), &out = call.output(0);
    const int32_t* rows = call.input(1).at<int32_t>();
    int64_t size = size_of(x.type);
    share_rows(team, out.shape[0], x.shape[1], [&](int64_t row, int64_t first, int64_t last) {
        const char* from = x.at<char>() + (rows[row] * x.strides[0] + first) * size;
        copy_bytes(out.at<char>() + (row * out.strides[0] + first) * size, from, (last - first) * size);
    });
}
