// out[R, N] = x[R, K] . weight[N, K]^T (+ bias[N]); the weight in the PANEL layout. Sums in float32 along K, one after the other.
#include "gemm.h"

static constexpr int64_t ROW_CHUNK = 240;         // rows that a task takes at most; a multiple of ROWS_APART
static constexpr int64_t CHUNK_BYTES = 512 << 10;  // of arranged activations, which then stay in the second-level cache

static Product product_of(const Call& call) {
    const Tensor &x = call.input(0), &weight = call.input(1);
    return product_of(x.type, weight.type, x.shape[0], x.shape[1]);
}

// Few rows are arranged by each thread for itself: cheaper than to meet.
static bool is_shared(const Product& product) { return product.blocks() > 1; }

static int64_t rows_per_task(const Product& product, int64_t panels, int32_t threads) {
    int64_t fitting = CHUNK_BYTES / (product.block_bytes() / product.most());
    if (fitting > ROW_CHUNK) fitting = ROW_CHUNK;
    int64_t rows = fitting / ROWS_APART * ROWS_APART;
    int64_t least = 2 * ROWS_APART;
    while (rows > least && panels * ((product.rows + rows - 1) / rows) < 4 * threads) rows -= ROWS_APART;
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

// Tasks [first, last) of the `turn`-th turn: at first each thread gets a long run of panels side by side, which memory reads fastest,
// then ever shorter ones, so that no thread waits for another that lost its core (guided self-scheduling, Polychronopoulos 1987).
static void tasks_of_turn(int64_t turn, int64_t total, int64_t threads, int64_t& first, int64_t& last) {
    int64_t start = 0, size = 0;
    for (;; turn -= threads, start += threads * size) {
        size = (total - start) / (2 * threads);
        if (size < 1) size = 1;
        if (turn < threads || size == 1) break;
    }
    first = start + turn * size < total ? start + turn * size : total;
    last = first + size < total ? first + size : total;
}

SCRATCH(linear) {
    Product product = product_of(call), few = product;  // steps of fewer rows use it as well
    if (few.rows > few.most()) few.rows = few.most();
    int64_t together = product.bytes(), each = few.bytes() * threads;
    return (together > each ? together : each) + threads * ROW_CHUNK * COLUMNS * 4;
}

// One panel times the rows [from, until): `results` has room for them.
static void run_task(const Call& call, const Product& product, const char* arranged, int64_t panel, int64_t from, int64_t until,
                     float* results) {
    const Tensor &weight = call.input(1), &out = call.output(0);
    const char* columns = weight.at<char>() + panel * panel_bytes(weight.type, product.K);
    multiply_panel(product, arranged, from, until, columns, results);
    int64_t first = panel * COLUMNS, rest = weight.shape[0] - first;
    int count = rest < COLUMNS ? static_cast<int>(rest) : COLUMNS;
    alignas(64) float addend[COLUMNS];
    const float* bias = nullptr;
    if (call.inputs > 2) {
        const Tensor& given = call.input(2);
        for (int c = 0; c < COLUMNS; c++) {
            addend[c] = c >= count ? 0 : given.type == F32 ? *given.at<float>(first + c) : to_float(*given.at<bf16>(first + c));
        }
        bias = addend;
    }
    if (out.type == F32) put_rows(results, until - from, bias, out.at<float>(from, first), out.strides[0], count);
    else put_rows(results, until - from, bias, out.at<bf16>(from, first), out.strides[0], count);
}

KERNEL(linear, "") {
    const Tensor& x = call.input(0);
    Product product = product_of(call);
    if (product.rows == 0) return;
    Rows rows{x.at<char>(), x.strides[0] * (x.type == F32 ? 4 : 2), nullptr, product.rows, x.type};
    bool shared = is_shared(product);
    char* arranged = team.scratch<char>(shared ? 0 : team.index * product.bytes());
    float* results = team.scratch<float>(product.bytes() * (shared ? 1 : team.size)) + team.index * ROW_CHUNK * COLUMNS;
    if (shared) {
        for (int64_t b; (b = team.next()) < product.blocks();) arrange_rows(product, rows, arranged, b, b + 1);
        team.barrier();
    } else {
        arrange_rows(product, rows, arranged, 0, 1);
    }
    int64_t panels = panel_count(call.input(1).shape[0]);
    int64_t chunk = rows_per_task(product, panels, team.size), chunks = (product.rows + chunk - 1) / chunk;
    for (;;) {
        int64_t first, last;
        tasks_of_turn(team.next(), panels * chunks, team.size, first, last);
        if (first == last) break;
        for (int64_t task = first; task < last; task++) {
            int64_t from = task / panels * chunk, until = from + chunk < product.rows ? from + chunk : product.rows;
            run_task(call, product, arranged, task % panels, from, until, results);
        }
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
    if (x.shape[1] < 1) return "K of at least 1";
    if (is_quantised(weight.type) && x.shape[1] % GROUP) return "K a multiple of 32, of a quantised weight";
    if (x.shape[0] != out.shape[0] || x.shape[1] != weight.shape[1] || out.shape[1] != weight.shape[0])
        return "x[rows, K], weight[N, K] and out[rows, N]";
    if (call.inputs == 3) {
        const Tensor& bias = call.input(2);
        if (!is_float(bias) || bias.rank != 1 || bias.shape[0] != weight.shape[0]) return "bias[N], float32 or bfloat16";
    }
    return nullptr;
}
