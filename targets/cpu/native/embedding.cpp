// out[row] = table[ids[row]]: rows of a table [N, K], row-major or in the PANEL layout, so that a table tied to the head is kept once.
#include "panel.h"
#include "vector.h"

static inline float half(const uint16_t* p) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(*p))); }

template <class In, class Out> static void copy_row(const In* from, int64_t K, Out* out) {
    int64_t k = 0;
    for (; k + WIDTH <= K; k += WIDTH) store(out + k, load(from + k));
    if (k < K) store_some(out + k, load_some(from + k, static_cast<int>(K - k)), static_cast<int>(K - k));
}

// One column of a panel: a row of the weight.
template <class Out> static void copy_column(Type type, const char* panel, int column, int64_t K, Out* out) {
    if (type == F32) {
        const float* from = reinterpret_cast<const float*>(panel) + column;
        for (int64_t k = 0; k < K; k++) put(out + k, from[k * COLUMNS]);
        return;
    }
    if (type == BF16) {
        const bf16* from = reinterpret_cast<const bf16*>(panel) + 2 * column;
        for (int64_t k = 0; k < K; k++) put(out + k, to_float(from[k / 2 * COLUMNS * 2 + k % 2]));
        return;
    }
    const bool nibbles = type != Q8_0;
    for (int64_t k = 0; k < K; k += GROUP, out += GROUP) {
        float scale = half(reinterpret_cast<const uint16_t*>(panel) + column), minimum = 0;
        panel += 2 * COLUMNS;
        if (type == Q4_1) {
            minimum = half(reinterpret_cast<const uint16_t*>(panel) + column);
            panel += 2 * COLUMNS;
        }
        int offset = type == Q8_0 ? 128 : type == Q4_0 ? 8 : 0;
        const uint8_t* fours = reinterpret_cast<const uint8_t*>(panel) + 4 * column;
        for (int i = 0; i < GROUP; i++) {
            int at = nibbles ? i % 16 : i;
            int quant = fours[at / 4 * COLUMNS * 4 + at % 4];
            if (nibbles) quant = i < 16 ? quant & 15 : quant >> 4;
            put(out + i, scale * static_cast<float>(quant - offset) + minimum);
        }
        panel += (nibbles ? 4 : 8) * COLUMNS * 4;
    }
}

template <class Out> static void fetch(const Tensor& table, int64_t id, Out* out) {
    int64_t K = table.shape[1];
    if (id < 0 || id >= table.shape[0]) {
        for (int64_t k = 0; k < K; k++) put(out + k, 0.0f);
    } else if (table.layout == PANEL) {
        const char* panel = table.at<char>() + id / COLUMNS * panel_bytes(table.type, K);
        copy_column(table.type, panel, static_cast<int>(id % COLUMNS), K, out);
    } else if (table.type == F32) {
        copy_row(table.at<float>(id), K, out);
    } else {
        copy_row(table.at<bf16>(id), K, out);
    }
}

// An id outside the table gives zeros.
KERNEL(embedding, "") {
    const Tensor &ids = call.input(0), &table = call.input(1), &out = call.output(0);
    for (int64_t row; (row = team.next()) < ids.shape[0];) {
        int64_t id = ids.type == I32 ? *ids.at<int32_t>(row) : *ids.at<int64_t>(row);
        if (out.type == F32) fetch(table, id, out.at<float>(row)); else fetch(table, id, out.at<bf16>(row));
    }
}

CHECK(embedding) {
    if (call.inputs != 2 || call.outputs != 1) return "(ids, table) -> out";
    const Tensor &ids = call.input(0), &table = call.input(1), &out = call.output(0);
    if ((ids.type != I32 && ids.type != I64) || ids.rank != 1 || ids.layout != ROW_MAJOR) return "ids[rows], int32 or int64";
    if (table.rank != 2 || (table.layout == PANEL ? !has_panel(table.type) : !is_float(table) || table.strides[1] != 1))
        return "table[N, K], row-major in float32 or bfloat16, or in the panel layout";
    if (is_quantised(table.type) && table.shape[1] % GROUP) return "K a multiple of 32, of a quantised table";
    if (out.rank != 2 || !is_float(out) || out.layout != ROW_MAJOR || out.strides[1] != 1 || out.shape[0] != ids.shape[0] ||
        out.shape[1] != table.shape[1])
        return "out[rows, K], float32 or bfloat16, features side by side";
    return nullptr;
}
