// out[R, N] = x[R, K] . weight[N, K]^T (+ bias[N]); the weight in the PANEL layout. Sums in float32 along K, one after the other.
#include "gemm.h"

static constexpr int64_t ROW_CHUNK = 240;         // rows that a task takes at most; a multiple of every MOST_ROWS
static constexpr int64_t CHUNK_BYTES = 512 << 10;  // of arranged activations, which then stay in the second-level cache

static Product product_of(const Call& call) {
    const Tensor &x = call.input(0), &weight = call.input(1);
    return product_of(x.type, weight.type, x.shape[0], x.shape[1]);
}

// Few rows are arranged by each thread for itself: cheaper than to meet.
static bool is_shared(const Product& product) { return product.blocks() > 1; }

static int64_t rows_per_task(const Product& product, int64_t panels, int32_t threads) {
    int64_t fitting = CHUNK_BYTES / (product.block_bytes() / MOST_ROWS);
    if (fitting > ROW_CHUNK) fitting = ROW_CHUNK;
    int64_t rows = fitting / MOST_ROWS * MOST_ROWS;
    int64_t least = 4 * MOST_ROWS;
    while (rows > least && panels * ((product.rows + rows - 1) / rows) < 4 * threads) rows -= MOST_ROWS;
    return rows > least ? rows : least;
}

template <class T> static void put_rows(const float* from, int64_t rows, const float* bias, T* to, int64_t stride, int columns) {
    for (int64_t r = 0; r < rows; r++, from += COLUMNS, to += stride) {
        for (int c = 0; c < columns; c += WIDTH) {
            Vec value = load(from + c);
            if (bias) value = value + load(bias + c);
            if (columns - c >= WIDTH) store(to + c, value); else store_some(to + c, value, columns - c);
        }
    }
}

static void share_of_turn(int64_t turn, int64_t total, int64_t threads, int64_t& first, int64_t& last) {
    int64_t start = 0;
    for (;;) {
        int64_t rest = total - start, size = rest / (2 * threads);
        if (size < 1) size = 1;
        if (turn < threads || size == 1) {
            first = start + turn * size;
            last = first + size;
            if (first > total) first = total;
            if (last > total) last = total;
            return;
        }
        turn -= threads;
        start += threads * size;
    }
}

SCRATCH(linear) {
    Product product = product_of(call);
    int64_t arranged = product.bytes() * (is_shared(product) ? 1 : threads);
    return arranged + threads * (ROW_CHUNK + 1) * COLUMNS * 4;
}

KERNEL(linear, "") {
    const Tensor &x = call.input(0), &weight = call.input(1), &out = call.output(0);
    const Tensor* bias = call.inputs > 2 ? &call.input(2) : nullptr;
    Product product = product_of(call);
    if (product.rows == 0) return;
    Rows rows{static_cast<const char*>(x.data), x.strides[0] * (x.type == F32 ? 4 : 2), nullptr, product.rows, x.type};
    bool shared = is_shared(product);
    char* arranged = team.scratch<char>(shared ? 0 : team.index * product.bytes());
    float* results = team.scratch<float>(product.bytes() * (shared ? 1 : team.size)) + team.index * (ROW_CHUNK + 1) * COLUMNS;
    float* addend = results + ROW_CHUNK * COLUMNS;
    if (shared) {
        for (int64_t b; (b = team.next()) < product.blocks();) arrange_rows(product, rows, arranged, b, b + 1);
        team.barrier();
    } else {
        arrange_rows(product, rows, arranged, 0, product.blocks());
    }
    int64_t N = weight.shape[0], panels = panel_count(N), bytes = panel_bytes(weight.type, product.K);
    int64_t chunk = rows_per_task(product, panels, team.size), chunks = (product.rows + chunk - 1) / chunk;
    int64_t total = panels * chunks;
    for (int64_t turn, first, last; (turn = team.next()), share_of_turn(turn, total, team.size, first, last), first < last;)
    for (int64_t task = first; task < last; task++) {
        int64_t panel = task % panels, from = task / panels * chunk;
        int64_t until = from + chunk < product.rows ? from + chunk : product.rows;
        multiply_panel(product, arranged, from, until, weight.at<char>() + panel * bytes, results);
        int columns = N - panel * COLUMNS < COLUMNS ? static_cast<int>(N - panel * COLUMNS) : COLUMNS;
        for (int c = 0; bias && c < columns; c++) {
            addend[c] = bias->type == F32 ? bias->at<float>()[panel * COLUMNS + c] : to_float(bias->at<bf16>()[panel * COLUMNS + c]);
        }
        const float* add = bias ? addend : nullptr;
        if (out.type == F32) put_rows(results, until - from, add, out.at<float>(from, panel * COLUMNS), out.strides[0], columns);
        else put_rows(results, until - from, add, out.at<bf16>(from, panel * COLUMNS), out.strides[0], columns);
    }
}

CHECK(linear) {
    if ((call.inputs != 2 && call.inputs != 3) || call.outputs != 1) return "(x, weight[, bias]) -> out";
    const Tensor &x = call.input(0), &weight = call.input(1), &out = call.output(0);
    if (x.rank != 2 || out.rank != 2 || weight.rank != 2) return "x[rows, K], weight[N, K] and out[rows, N]";
    if (!is_float(x) || out.type != x.type) return "x and out of one type, float32 or bfloat16";
    if (x.layout != ROW_MAJOR || out.layout != ROW_MAJOR || x.strides[1] != 1 || out.strides[1] != 1)
        return "x and out with features side by side";
    if (weight.layout != PANEL || !has_panel(weight.type)) return "a weight in the panel layout, of type F32, BF16, Q8_0, Q4_0 or Q4_1";
    if (is_quantised(weight.type) && x.shape[1] % GROUP) return "K a multiple of 32, of a quantised weight";
    if (x.shape[0] != out.shape[0] || x.shape[1] != weight.shape[1] || out.shape[1] != weight.shape[0])
        return "x[rows, K], weight[N, K] and out[rows, N]";
    if (call.inputs == 3) {
        const Tensor& bias = call.input(2);
        if (!is_float(bias) || bias.rank != 1 || bias.shape[0] != weight.shape[0]) return "bias[N], float32 or bfloat16";
    }
    return nullptr;
}
