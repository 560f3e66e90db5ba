// Log probabilities of the chosen tokens and of the likeliest ones, of the logits as the model gave them.
#include "largest.h"
#include "sampling.h"

namespace {

enum Operand { LOGITS, TOKENS, LOGIT_SLOTS, FEATURES };

// The likeliest tokens so far, likeliest first, ties by token; tokens are offered in ascending order.
struct Ranking {
    int32_t* tokens;
    float* values;
    int64_t size, kept;

    float threshold() const { return kept < size ? -__builtin_inff() : values[size - 1]; }
    void offer(int32_t token, float value) {
        if (kept == size && !(value > values[size - 1])) return;
        int64_t at = kept < size ? kept++ : size - 1;
        for (; at > 0 && values[at - 1] < value; at--) values[at] = values[at - 1], tokens[at] = tokens[at - 1];
        values[at] = value, tokens[at] = token;
    }
};

// The natural logarithm of the sum of e^(x - largest), as float32.
template <class T> float log_sum(const T* x, int64_t columns, float largest) {
    WideSum sum;
    for_vectors(columns, [&](int64_t k, auto lanes) {
        Vec weights = exponential(load(x + k, lanes) - all(largest));
        if (lanes.count == WIDTH) {
            sum.add(weights);
            return;
        }
        float some[WIDTH] = {};
        store(some, weights, lanes);
        sum.add(load(some));
    });
    return static_cast<float>(natural_logarithm(sum.total()));
}

template <class T> void logprobs(const T* x, int64_t columns, int32_t token, float& chosen, Ranking ranking) {
    Largest largest = find_largest(x, 0, columns);
    if (!largest.is_finite()) {
        chosen = __builtin_nanf("");  // its token fails the request
    } else {
        const Vec top = all(largest.value), sum = all(log_sum(x, columns, largest.value));
        chosen = (to_float(x[token < 0 ? 0 : token]) - largest.value) - sum[0];
        for_vectors(columns, [&](int64_t k, auto lanes) {
            Vec values = (load(x + k, lanes) - top) - sum;
            uint32_t candidates = ranking.kept < ranking.size ? ~0u : lanes_above(values, all(ranking.threshold()));
            for_lanes(candidates & lanes_up_to(lanes.count), [&](int lane) { ranking.offer(static_cast<int32_t>(k) + lane, values[lane]); });
        });
    }
    for (int64_t i = ranking.kept; i < ranking.size; i++) ranking.tokens[i] = -1, ranking.values[i] = -__builtin_inff();
}

}  // namespace

CHECK(token_logprobs) {
    if (call.inputs != 4 || call.outputs != 3)
        return "(logits, tokens, logit_slots, features) -> chosen_logprobs, top_tokens, top_logprobs";
    const Tensor &logits = call.input(LOGITS), &features = call.input(FEATURES), &top = call.output(1);
    if (!is_logits(logits)) return "logits[L, V] of float32 or bfloat16, a row side by side";
    int64_t rows = logits.shape[0];
    if (!is_vector(call.input(TOKENS), I32, rows) || !is_vector(call.input(LOGIT_SLOTS), I32, rows))
        return "tokens[L] and logit_slots[L] of int32";
    if (!is_vector(features, I32, features.shape[0])) return "features[slots] of int32";
    if (!is_vector(call.output(0), F32, rows)) return "chosen_logprobs[L] of float32";
    return top.shape[1] > 0 && is_matrix(top, I32, rows, top.shape[1]) && is_matrix(call.output(2), F32, rows, top.shape[1])
               ? nullptr : "top_tokens[L, T] of int32 and top_logprobs[L, T] of float32";
}
// Of rows that do not ask, nothing is written.
KERNEL(token_logprobs, "") {
    const Tensor& logits = call.input(LOGITS);
    const Asked asked_for = asked(call, LOGIT_SLOTS);
    const int64_t count = asked_for.count(LOGPROBS), columns = logits.shape[1];
    if (count == 0) return;
    for (int64_t n; (n = team.next()) < count;) {
        int64_t row = asked_for.nth(LOGPROBS, n);
        int32_t token = *call.input(TOKENS).at<int32_t>(row);
        float& chosen = *call.output(0).at<float>(row);
        Ranking ranking{call.output(1).at<int32_t>(row), call.output(2).at<float>(row), call.output(1).shape[1], 0};
        if (logits.type == F32) logprobs(logits.at<float>(row), columns, token, chosen, ranking);
        else logprobs(logits.at<bf16>(row), columns, token, chosen, ranking);
    }
}
