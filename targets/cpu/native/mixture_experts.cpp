// The experts of a mixture (Shazeer et al. 2017, arXiv:1701.06538): out[R, H] = for every row the sum over its choices, in order, of
// weight * (down @ (activation(gate) * up) + down_bias), where gate and up are the halves of gate_up @ x + gate_up_bias.
//
// (row, choice) pairs are sorted by expert; the pairs of an expert are one product (gemm.h) with its weights. Sums are float32 along
// K and over the choices, whatever the number of rows and threads; between the products values are rounded to x's type, as eager
// models do. A row with a choice that is no expert becomes NaN; where there are numbers[E], these are the model's experts from the
// first of the numbers on, and all other choices add nothing.
#include "activation.h"
#include "gemm_tasks.h"
#include "lanes.h"

namespace {

enum Operand { X, INDICES, WEIGHTS, GATE_UP, DOWN, GATE_UP_BIAS, DOWN_BIAS };
enum Number { ACTIVATION, ALPHA, LIMIT };
constexpr int64_t CLAMPED = 3, SILU_CLAMPED = 4;  // the activations that activation.h does not have
enum Step { FIRST, SECOND, STEPS };  // the product with gate_up, the product with down

// Pairs [first, first + count) in the order of experts, all of one expert, as many as a task takes.
struct Stretch {
    int32_t expert, first, count;
    Way way;           // that of all pairs of the expert
    int64_t arranged;  // bytes from the start of the arranged activations
};
struct Counts {
    int64_t runs[STEPS];
};

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// A call, and where in the shared scratch its parts are.
struct Mixture {
    const Call& call;
    int64_t rows, choices, pairs, experts, hidden, inner, element;
    const Tensor* numbers;  // null: all of the model's experts are here
    Counts* counts;
    int32_t *starts, *order, *places;  // by expert: its next pair; by place: the row; by pair: its place, -1 for none
    Stretch* runs[STEPS];
    char *arranged, *values;  // values: gate_up's columns, later down's, by place
    float* results;           // of a task, by thread
    int64_t bytes;

    bool biased() const { return call.inputs > DOWN_BIAS; }
    const Tensor& weight(int step) const { return call.input(step == FIRST ? GATE_UP : DOWN); }
    int64_t features(int step) const { return step == FIRST ? hidden : inner; }
    Product product(int step, const Stretch& run) const { return product_of(run.way, weight(step).type, run.count, features(step)); }
    Way way(int step, int64_t count) const { return way_of(call.input(X).type, weight(step).type, count); }
    int64_t chunk(int step, Way way) const { return most_rows_of_chunk(way, weight(step).type, features(step)); }

    Mixture(const Call& call, char* memory, int32_t threads) : call(call) {
        const Tensor& x = call.input(X);
        rows = x.shape[0];
        choices = call.input(INDICES).shape[1];
        pairs = rows * choices;
        experts = call.input(DOWN).shape[0];
        hidden = x.shape[1];
        inner = call.input(DOWN).shape[2];
        element = size_of(x.type);
        numbers = call.inputs % 2 ? nullptr : &call.input(call.inputs - 1);
        int64_t hit = experts < pairs ? experts : pairs, at = 0, largest = 0;
        auto take = [&](auto*& part, int64_t count) {
            part = reinterpret_cast<decltype(&*part)>(memory + at);
            at += aligned(count * static_cast<int64_t>(sizeof(*part)));
        };
        take(counts, 1);
        take(starts, experts + 1);
        take(order, pairs);
        take(places, pairs);
        for (int step = FIRST; step < STEPS; step++) {
            int64_t few = chunk(step, way(step, 1)), more = chunk(step, way(step, pairs)), many = hit + pairs / (few < more ? few : more);
            int64_t size = most_bytes(x.type, weight(step).type, features(step), pairs, many);
            take(runs[step], many);
            if (size > largest) largest = size;
        }
        take(arranged, largest);
        take(values, pairs * (2 * inner > hidden ? 2 * inner : hidden) * element);
        take(results, threads * MOST_CHUNK * COLUMNS);
        bytes = at;
    }
};

}  // namespace

// Adds the stretches of the pairs of an expert.
static void cut(const Mixture& mixture, int step, int32_t expert, int32_t first, int32_t count, int64_t& arranged) {
    Way way = mixture.way(step, count);
    int32_t chunk = static_cast<int32_t>(mixture.chunk(step, way));
    for (int32_t last = first + count; first < last; first += chunk) {
        int32_t many = last - first < chunk ? last - first : chunk;
        Stretch& run = mixture.runs[step][mixture.counts->runs[step]++];
        run = {expert, first, many, way, arranged};
        arranged += mixture.product(step, run).bytes();
    }
}

// Sorts the pairs by expert, in the order of rows within one (counting sort).
static void sort_pairs(const Mixture& mixture) {
    const int32_t* indices = mixture.call.input(INDICES).at<int32_t>();
    int32_t *starts = mixture.starts, experts = static_cast<int32_t>(mixture.experts);
    int32_t before = mixture.numbers ? *mixture.numbers->at<int32_t>() : 0;
    auto is_expert = [&](int32_t e) { return e >= before && e - before < experts; };
    *mixture.counts = {};
    for (int32_t e = 0; e <= experts; e++) starts[e] = 0;
    for (int64_t i = 0; i < mixture.pairs; i++) if (is_expert(indices[i])) starts[indices[i] - before + 1]++;
    int64_t arranged[STEPS] = {};
    for (int32_t e = 0; e < experts; e++) {
        int32_t count = starts[e + 1];
        starts[e + 1] += starts[e];
        if (count == 0) continue;
        for (int step = FIRST; step < STEPS; step++) cut(mixture, step, e, starts[e], count, arranged[step]);
    }
    for (int64_t i = 0; i < mixture.pairs; i++) {
        mixture.places[i] = is_expert(indices[i]) ? starts[indices[i] - before]++ : -1;
        if (mixture.places[i] >= 0) mixture.order[mixture.places[i]] = static_cast<int32_t>(i / mixture.choices);
    }
}

// gate becomes activation(gate) * up.
template <class T> static void activate(const Call& call, T* gate, const T* up, int64_t n) {
    if (call.integer(ACTIVATION) == CLAMPED) {
        Vec alpha = all(static_cast<float>(call.number(ALPHA))), limit = all(static_cast<float>(call.number(LIMIT)));
        for_vectors(n, [&](int64_t k, auto lanes) {
            Vec g = vmin(limit, load(gate + k, lanes));  // in this order NaN stays
            Vec u = vmax(zero() - limit, vmin(limit, load(up + k, lanes)));
            store(gate + k, rounded<T>(times_sigmoid(g, g * alpha)) * (u + all(1.0f)), lanes);
        });
        return;
    }
    if (call.integer(ACTIVATION) == SILU_CLAMPED) {
        Vec limit = all(static_cast<float>(call.number(LIMIT)));
        for_vectors(n, [&](int64_t k, auto lanes) {
            Vec u = vmax(zero() - limit, vmin(limit, load(up + k, lanes)));
            store(gate + k, rounded<T>(silu(vmin(limit, load(gate + k, lanes)))) * u, lanes);
        });
        return;
    }
    for_activation(call.integer(ACTIVATION), [&](auto kind) {
        for_vectors(n, [&](int64_t k, auto lanes) {
            store(gate + k, rounded<T>(activate<kind.value>(load(gate + k, lanes))) * load(up + k, lanes), lanes);
        });
    });
}

// The activations of a product: rows of x, or what the first product gave, through the activation.
static void arrange(const Mixture& mixture, int step, Team& team) {
    const Call& call = mixture.call;
    const Tensor& x = call.input(X);
    for (int64_t task; (task = team.next()) < mixture.counts->runs[step];) {
        const Stretch& run = mixture.runs[step][task];
        Rows rows{x.at<char>(), x.strides[0] * mixture.element, mixture.order + run.first, run.count, x.type};
        if (step == SECOND) {
            int64_t stride = 2 * mixture.inner * mixture.element;
            char* columns = mixture.values + run.first * stride;
            rows = {columns, stride, nullptr, run.count, x.type};
            for (int64_t row = 0; row < run.count; row++) {
                char *gate = columns + row * stride, *up = gate + mixture.inner * mixture.element;
                if (x.type == F32) activate(call, reinterpret_cast<float*>(gate), reinterpret_cast<float*>(up), mixture.inner);
                else activate(call, reinterpret_cast<bf16*>(gate), reinterpret_cast<bf16*>(up), mixture.inner);
            }
        }
        arrange_rows(mixture.product(step, run), rows, mixture.arranged + run.arranged);
    }
}

// One panel of an expert times a run of its rows, plus the bias, into mixture.values.
static void multiply_run(const Mixture& mixture, int step, const Stretch& run, int64_t panel, float* results) {
    const Tensor& weight = mixture.weight(step);
    Product product = mixture.product(step, run);
    int64_t columns = weight.shape[1], first = panel * COLUMNS, rest = columns - first;
    int count = rest < COLUMNS ? static_cast<int>(rest) : COLUMNS;
    const char* at = weight.at<char>() + (run.expert * panel_count(columns) + panel) * panel_bytes(weight.type, product.K);
    multiply_panel(product, mixture.arranged + run.arranged, at, results);
    alignas(64) float addend[COLUMNS];
    const float* bias = nullptr;
    if (mixture.biased()) {
        const Tensor& given = mixture.call.input(step == FIRST ? GATE_UP_BIAS : DOWN_BIAS);
        read_bias(given, run.expert * given.strides[0] + first, count, addend);
        bias = addend;
    }
    int64_t to = run.first * columns + first;
    if (mixture.element == 4) put_rows(results, run.count, bias, reinterpret_cast<float*>(mixture.values) + to, columns, count);
    else put_rows(results, run.count, bias, reinterpret_cast<bf16*>(mixture.values) + to, columns, count);
}

static void multiply(const Mixture& mixture, int step, Team& team) {
    int64_t panels = panel_count(mixture.weight(step).shape[1]);
    float* results = mixture.results + team.index * MOST_CHUNK * COLUMNS;
    for (;;) {
        int64_t first, last;
        tasks_of_turn(team.next(), mixture.counts->runs[step] * panels, team.size, first, last);
        if (first == last) break;
        for (int64_t task = first; task < last; task++) {
            multiply_run(mixture, step, mixture.runs[step][task / panels], task % panels, results);
        }
    }
}

static float factor(const Tensor& weights, int64_t row, int64_t choice) {
    return weights.type == F32 ? *weights.at<float>(row, choice) : to_float(*weights.at<bf16>(row, choice));
}

template <class T> static void add_choices(const Mixture& mixture, Team& team) {
    const Tensor &out = mixture.call.output(0), &weights = mixture.call.input(WEIGHTS);
    const T* made = reinterpret_cast<const T*>(mixture.values);
    float missing = mixture.numbers ? 0.0f : __builtin_nanf("");
    share_rows(team, mixture.rows, mixture.hidden, [&](int64_t row, int64_t first, int64_t last) {
        const int32_t* places = mixture.places + row * mixture.choices;
        for_vectors(last - first, [&](int64_t k, auto lanes) {
            Vec total = zero();
            for (int64_t j = 0; j < mixture.choices; j++) {
                Vec value = places[j] < 0 ? all(missing) : load(made + places[j] * mixture.hidden + first + k, lanes);
                total = fma(all(factor(weights, row, j)), value, total);
            }
            store(out.at<T>(row, first + k), total, lanes);
        });
    });
}

SCRATCH(moe_experts) { return Mixture(call, nullptr, threads).bytes; }

CHECK(moe_experts) {
    if (call.inputs < 5 || call.inputs > 8 || call.outputs != 1)
        return "(x, indices, weights, gate_up, down[, gate_up_bias, down_bias][, numbers]) -> out";
    const Tensor &x = call.input(X), &indices = call.input(INDICES), &weights = call.input(WEIGHTS), &out = call.output(0);
    const Tensor *activations[] = {&x, &out}, *choices[] = {&indices, &weights};
    for (const Tensor* t : activations)
        if (!is_float(*t) || t->type != x.type || t->rank != 2 || t->layout != ROW_MAJOR || t->strides[1] != 1)
            return "x and out [rows, H] of one type, float32 or bfloat16, features side by side";
    if (x.shape[0] != out.shape[0] || x.shape[1] != out.shape[1]) return "x and out of one shape [rows, H]";
    if (indices.type != I32 || (weights.type != F32 && weights.type != x.type)) return "indices of int32, weights of float32 or x's type";
    for (const Tensor* t : choices)
        if (t->rank != 2 || !is_dense(*t) || t->strides[0] != t->shape[1] || t->shape[0] != x.shape[0] || t->shape[1] != indices.shape[1])
            return "indices and weights [rows, k], dense";
    if (indices.shape[1] < 1) return "k of at least 1";
    const Tensor &gate_up = call.input(GATE_UP), &down = call.input(DOWN);
    const Tensor* matrices[] = {&gate_up, &down};
    for (const Tensor* t : matrices) {
        if (t->layout != PANEL || !has_panel(t->type) || t->rank != 3)
            return "gate_up[E, 2 I, H] and down[E, H, I] in the panel layout, of type F32, BF16, Q8_0, Q4_0 or Q4_1";
        if (t->shape[0] < 1 || t->shape[2] < 1) return "E, H and I of at least 1";
        if (is_quantised(t->type) && t->shape[2] % GROUP) return "H and I multiples of 32, of quantised weights";
    }
    if (gate_up.shape[0] != down.shape[0] || gate_up.shape[1] != 2 * down.shape[2] || gate_up.shape[2] != x.shape[1] ||
        down.shape[1] != x.shape[1])
        return "x[rows, H], gate_up[E, 2 I, H] and down[E, H, I]";
    for (int i = GATE_UP_BIAS; i <= DOWN_BIAS && call.inputs > DOWN_BIAS; i++) {
        const Tensor &bias = call.input(i), &of = i == GATE_UP_BIAS ? gate_up : down;
        if (!is_float(bias) || bias.rank != 2 || bias.strides[1] != 1 || bias.shape[0] != of.shape[0] || bias.shape[1] != of.shape[1])
            return "gate_up_bias[E, 2 I] and down_bias[E, H], float32 or bfloat16";
    }
    if (call.inputs % 2 == 0) {
        const Tensor& numbers = call.input(call.inputs - 1);
        if (numbers.type != I32 || numbers.rank != 1 || numbers.layout != ROW_MAJOR || numbers.shape[0] != down.shape[0])
            return "numbers[E] of int32";
    }
    return nullptr;
}

KERNEL(moe_experts, "activation:choice(silu,gelu,gelu_tanh,swiglu_clamped,silu_clamped) alpha:number=0 limit:number=0") {
    Mixture mixture(call, team.scratch<char>(), team.size);
    if (mixture.rows == 0) return;
    if (team.index == 0) sort_pairs(mixture);
    team.barrier();
    for (int step = FIRST; step < STEPS; step++) {
        arrange(mixture, step, team);
        team.barrier();
        multiply(mixture, step, team);
        team.barrier();
    }
    if (mixture.element == 4) add_choices<float>(mixture, team); else add_choices<bf16>(mixture, team);
}
