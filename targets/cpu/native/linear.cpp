// out[R, N] = x[R, K] . weight[N, K]^T (+ bias[N]); the weight in the PANEL layout. Sums in float32 along K, one after the other.
#include "gemm_tasks.h"

static Way way_of(const Call& call) { return way_of(call.input(0).type, call.input(1).type, call.input(0).shape[0]); }

static Product product_of(const Call& call, Way way, int64_t rows) {
    return product_of(way, call.input(1).type, rows, call.input(0).shape[1]);
}

static int64_t most_rows_of_chunk(const Call& call, Way way) {
    return most_rows_of_chunk(way, call.input(1).type, call.input(0).shape[1]);
}

// Fewer where that gives every thread something to do.
static int64_t rows_of_chunk(const Call& call, Way way, int64_t panels, int32_t threads) {
    const Chunks chunks = chunks_of(way);
    int64_t rows = most_rows_of_chunk(call, way), all = call.input(0).shape[0];
    while (rows > chunks.least && panels * ((all + rows - 1) / rows) < 4 * threads) rows -= chunks.step;
    return rows;
}

// Of each thread: the activations of one chunk, arranged, and their products with one panel.
static int64_t scratch_of_thread(const Call& call, int64_t all) {
    Way way = way_of(call.input(0).type, call.input(1).type, all);
    int64_t rows = most_rows_of_chunk(call, way);
    Product product = product_of(call, way, rows < all ? rows : all);
    return product.bytes() + product.padded_rows() * COLUMNS * 4;
}

SCRATCH(linear) {
    int64_t rows = call.input(0).shape[0], few = rows < LEAST_TILED_ROWS ? rows : LEAST_TILED_ROWS - 1;
    if (rows == 0) return 0;
    int64_t all = scratch_of_thread(call, rows), least = scratch_of_thread(call, few);  // steps of few rows may go another way
    return threads * (all > least ? all : least);
}

// Writes the products of one panel with the rows from `from` on.
static void put_panel(const Call& call, int64_t panel, int64_t from, int64_t rows, const float* results) {
    const Tensor& out = call.output(0);
    int64_t first = panel * COLUMNS, rest = call.input(1).shape[0] - first;
    int count = rest < COLUMNS ? static_cast<int>(rest) : COLUMNS;
    alignas(64) float addend[COLUMNS];
    const float* bias = nullptr;
    if (call.inputs > 2) {
        read_bias(call.input(2), first, count, addend);
        bias = addend;
    }
    if (out.type == F32) put_rows(results, rows, bias, out.at<float>(from, first), out.strides[0], count);
    else put_rows(results, rows, bias, out.at<bf16>(from, first), out.strides[0], count);
}

// A task is one panel times one chunk of rows.
KERNEL(linear, "") {
    const Tensor &x = call.input(0), &weight = call.input(1);
    int64_t all = x.shape[0], panels = panel_count(weight.shape[0]), bytes = panel_bytes(weight.type, x.shape[1]);
    if (all == 0) return;
    Rows rows{x.at<char>(), x.strides[0] * (x.type == F32 ? 4 : 2), nullptr, all, x.type};
    Way way = way_of(call);
    int64_t chunk = rows_of_chunk(call, way, panels, team.size), chunks = (all + chunk - 1) / chunk, arranged = -1;
    Product product{};
    char* memory = team.scratch<char>(team.index * scratch_of_thread(call, all));
    float* results = nullptr;
    for (;;) {
        int64_t first, last;
        tasks_of_turn(team.next(), panels * chunks, team.size, first, last);
        if (first == last) return;
        fetch_start(way, weight.at<char>() + first % panels * bytes);
        for (int64_t task = first; task < last; task++) {
            int64_t panel = task % panels, from = task / panels * chunk;
            if (from != arranged) {
                product = product_of(call, way, all - from < chunk ? all - from : chunk);
                arrange_rows(product, rows.part(from, product.rows), memory);
                results = reinterpret_cast<float*>(memory + product.bytes());
                arranged = from;
            }
            multiply_panel(product, memory, weight.at<char>() + panel * bytes, results);
            put_panel(call, panel, from, product.rows, results);
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
        if (!is_float(bias) || bias.rank != 1 || bias.strides[0] != 1 || bias.shape[0] != weight.shape[0]) return "bias[N], float32 or bfloat16";
    }
    return nullptr;
}
