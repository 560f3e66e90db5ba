// Which experts each row goes to (Shazeer et al. 2017, arXiv:1701.06538), some of them by groups (DeepSeek-V2, arXiv:2405.04434).
#include "elementary.h"
#include "lanes.h"

namespace {

enum Number { TOP_K, SCORING, NORMALIZE, SCALE, GROUPS, TOP_GROUPS, GROUP_BEST };
enum Scoring { SOFTMAX, SOFTMAX_SELECTED, SIGMOID };

// The best of what was offered, in descending order; of equal ones the first. NaN is the best of all, so that it stays visible.
struct Best {
    float* values;
    int32_t* places;
    int64_t most, count;

    static bool is_better(float a, float b) { return a > b || (a != a && b == b); }
    void offer(float value, int64_t place) {
        if (count == most && !is_better(value, values[count - 1])) return;
        int64_t at = count < most ? count++ : count - 1;
        for (; at > 0 && is_better(value, values[at - 1]); at--) {
            values[at] = values[at - 1];
            places[at] = places[at - 1];
        }
        values[at] = value;
        places[at] = static_cast<int32_t>(place);
    }
};

// What a thread needs for a row: scores and what is chosen by, of each expert, and two lists of the best.
struct Memory {
    float *scores, *choice;
    Best best, judged;
    uint8_t* kept;  // by group

    static int64_t bytes(int64_t experts) { return (experts * (6 * 4 + 1) + 63) / 64 * 64; }
    Memory(char* memory, int64_t experts) {
        float* floats = reinterpret_cast<float*>(memory);
        scores = floats;
        choice = floats + experts;
        best = {floats + 2 * experts, reinterpret_cast<int32_t*>(floats + 3 * experts), 0, 0};
        judged = {floats + 4 * experts, reinterpret_cast<int32_t*>(floats + 5 * experts), 0, 0};
        kept = reinterpret_cast<uint8_t*>(floats + 6 * experts);
    }
};

}  // namespace

// e^(x - largest) over their sum; all NaN where the largest is not finite.
static void softmax(float* x, int64_t n) {
    float top = x[0];
    for (int64_t k = 1; k < n; k++) top = Best::is_better(x[k], top) ? x[k] : top;
    for_vectors(n, [&](int64_t k, auto lanes) { store(x + k, exponential(load(x + k, lanes) - all(top)), lanes); });
    float total = 0;
    for (int64_t k = 0; k < n; k++) total += x[k];
    for_vectors(n, [&](int64_t k, auto lanes) { store(x + k, load(x + k, lanes) / all(total), lanes); });
    if (!(__builtin_fabsf(top) < __builtin_inff())) for (int64_t k = 0; k < n; k++) x[k] = __builtin_nanf("");
}

template <class T> static void read(const Tensor& from, int64_t row, int64_t n, float* to) {
    const T* x = from.at<T>(row);
    for_vectors(n, [&](int64_t k, auto lanes) { store(to + k, load(x + k, lanes), lanes); });
}
static void read(const Tensor& from, int64_t row, int64_t n, float* to) {
    if (from.type == F32) read<float>(from, row, n, to); else read<bf16>(from, row, n, to);
}

// Marks the groups whose experts may be chosen.
static void keep_groups(const Call& call, Memory& memory, int64_t of_group) {
    int64_t groups = call.integer(GROUPS);
    memory.judged.most = call.integer(TOP_GROUPS);
    memory.judged.count = 0;
    for (int64_t g = 0; g < groups; g++) {
        memory.best.most = call.integer(GROUP_BEST);
        memory.best.count = 0;
        for (int64_t e = g * of_group; e < (g + 1) * of_group; e++) memory.best.offer(memory.choice[e], e);
        float total = 0;
        for (int64_t i = 0; i < memory.best.count; i++) total += memory.best.values[i];
        memory.kept[g] = 0;
        memory.judged.offer(total, g);
    }
    for (int64_t i = 0; i < memory.judged.count; i++) memory.kept[memory.judged.places[i]] = 1;
}

static void choose(const Call& call, Memory& memory, int64_t experts) {
    int64_t groups = call.integer(GROUPS), of_group = experts / groups;
    if (groups > 1) keep_groups(call, memory, of_group);
    memory.best.most = call.integer(TOP_K);
    memory.best.count = 0;
    for (int64_t g = 0; g < groups; g++) {
        if (groups > 1 && !memory.kept[g]) continue;
        for (int64_t e = g * of_group; e < (g + 1) * of_group; e++) memory.best.offer(memory.choice[e], e);
    }
}

// Leaves the weights of the chosen experts in memory.best.values.
static void route(const Call& call, Memory& memory, int64_t row, int64_t experts) {
    read(call.input(0), row, experts, memory.scores);
    Scoring scoring = static_cast<Scoring>(call.integer(SCORING));
    if (scoring == SOFTMAX) softmax(memory.scores, experts);
    if (scoring == SIGMOID) {
        for_vectors(experts, [&](int64_t k, auto lanes) {
            Vec x = load(memory.scores + k, lanes);
            Vec one = vmax(all(1.0f), vmin(all(1.0f), x));  // in this order NaN stays
            store(memory.scores + k, times_sigmoid(one, x), lanes);
        });
    }
    if (call.inputs > 1) {
        read(call.input(1), 0, experts, memory.choice);
        for (int64_t e = 0; e < experts; e++) memory.choice[e] += memory.scores[e];
    } else {
        copy_bytes(memory.choice, memory.scores, experts * 4);
    }
    choose(call, memory, experts);
    Best& best = memory.best;
    if (scoring == SOFTMAX_SELECTED) softmax(best.values, best.count);
    else for (int64_t i = 0; i < best.count; i++) best.values[i] = memory.scores[best.places[i]];
    float divisor = 0, scale = static_cast<float>(call.number(SCALE));
    for (int64_t i = 0; i < best.count; i++) divisor += best.values[i];
    for (int64_t i = 0; i < best.count; i++) best.values[i] = (call.flag(NORMALIZE) ? best.values[i] / divisor : best.values[i]) * scale;
}

SCRATCH(moe_route) { return threads * Memory::bytes(call.input(0).shape[1]); }

CHECK(moe_route) {
    if ((call.inputs != 1 && call.inputs != 2) || call.outputs != 2) return "(logits[, bias]) -> indices, weights";
    const Tensor &logits = call.input(0), &indices = call.output(0), &weights = call.output(1);
    if (!is_float(logits) || logits.rank != 2 || logits.strides[1] != 1 || logits.layout != ROW_MAJOR)
        return "logits[rows, experts], float32 or bfloat16, experts side by side";
    int64_t experts = logits.shape[1], top_k = call.integer(TOP_K), groups = call.integer(GROUPS), kept = call.integer(TOP_GROUPS);
    if (top_k < 1 || top_k > experts) return "1 to as many chosen experts as there are";
    if (indices.type != I32 || !is_float(weights)) return "indices of int32 and weights of float32 or bfloat16";
    const Tensor* made[] = {&indices, &weights};
    for (const Tensor* out : made)
        if (out->rank != 2 || !is_dense(*out) || out->shape[0] != logits.shape[0] || out->shape[1] != top_k)
            return "indices and weights [rows, top_k], dense";
    if (call.inputs == 2) {
        const Tensor& bias = call.input(1);
        if (!is_float(bias) || bias.rank != 1 || bias.strides[0] != 1 || bias.shape[0] != experts) return "bias[experts], float32 or bfloat16";
    }
    if (call.integer(SCORING) == SOFTMAX_SELECTED && (call.inputs == 2 || groups != 1)) return "no bias or groups for softmax_selected";
    if (groups < 1 || experts % groups || kept < 1 || kept > groups) return "groups that divide the experts";
    int64_t of_group = experts / groups, judged = call.integer(GROUP_BEST);
    if (groups > 1 && (judged < 1 || judged > of_group || top_k > kept * of_group)) return "enough experts in the groups that are kept";
    return nullptr;
}

KERNEL(moe_route, "top_k:integer scoring:choice(softmax,softmax_selected,sigmoid) normalize:flag=0 scale:number=1 groups:integer=1 "
                  "top_groups:integer=1 group_best:integer=2") {
    const Tensor &logits = call.input(0), &indices = call.output(0), &weights = call.output(1);
    int64_t experts = logits.shape[1], first, last;
    Memory memory(team.scratch<char>(team.index * Memory::bytes(experts)), experts);
    team.share(logits.shape[0], 1, first, last);
    for (int64_t row = first; row < last; row++) {
        route(call, memory, row, experts);
        for (int64_t i = 0; i < memory.best.count; i++) {
            *indices.at<int32_t>(row, i) = memory.best.places[i];
            if (weights.type == F32) *weights.at<float>(row, i) = memory.best.values[i];
            else put(weights.at<bf16>(row, i), memory.best.values[i]);
        }
    }
}
