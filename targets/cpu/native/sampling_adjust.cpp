// What a request may ask to be done to its logits before a token is chosen: penalties, bias, no end before a minimum. The same numbers
// as runtime/functions/adjust_logits.py.
#include "elementary.h"
#include "lanes.h"
#include "sampling.h"

namespace {

enum Operand {
    LOGITS, LOGIT_SLOTS, FEATURES, REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY, PROMPT_SEEN, OUTPUT_COUNTS,
    BIAS_TOKENS, BIAS_VALUES, MIN_TOKENS, OUTPUT_POSITION, END_TOKENS
};

typedef float Floats __attribute__((vector_size(WIDTH * 4)));

// Whole numbers as floats.
template <class T> Vec numbers(const T* p, int count) {
    typedef T Values __attribute__((vector_size(WIDTH * sizeof(T))));
    Values values = {};
    if (count == WIDTH) __builtin_memcpy(&values, p, sizeof values);
    else for (int i = 0; i < count; i++) values[i] = p[i];
    return (Vec)__builtin_convertvector(values, Floats);
}

// Rounded before it is used, whatever the compiler would like to fuse it with.
Vec product(Vec a, Vec b) {
    Vec result = a * b;
    __asm__("" : "+x"(result));
    return result;
}

struct Penalties {
    const uint8_t* prompt_seen;
    const int32_t* output_counts;
    float repetition, presence, frequency;

    // Repetition over prompt and output (Keskar et al. 2019), presence and frequency over the output.
    Vec applied(Vec x, int64_t k, int count) const {
        Vec counts = numbers(output_counts + k, count), seen = numbers(prompt_seen + k, count);
        Vec repeated = where_less(zero(), x, x / all(repetition), x * all(repetition));
        x = where_less(zero(), seen + counts, repeated, x);
        x = x - where_less(zero(), counts, all(presence), zero());
        return x - product(all(frequency), counts);
    }
};

template <class T> void adjust(const Call& call, int64_t row, int64_t slot, int32_t features, int64_t first, int64_t last) {
    const T* x = call.input(LOGITS).at<T>(row);
    float* out = call.output(0).at<float>(row);
    Penalties penalties{call.input(PROMPT_SEEN).at<uint8_t>(slot), call.input(OUTPUT_COUNTS).at<int32_t>(slot),
                        *call.input(REPETITION_PENALTY).at<float>(slot), *call.input(PRESENCE_PENALTY).at<float>(slot),
                        *call.input(FREQUENCY_PENALTY).at<float>(slot)};
    for_vectors(last - first, [&](int64_t at, auto lanes) {
        int64_t k = first + at;
        Vec values = load(x + k, lanes);
        store(out + k, features & PENALTIES ? penalties.applied(values, k, lanes.count) : values, lanes);
    });
    if (features & BIAS) {
        const Tensor& tokens = call.input(BIAS_TOKENS);
        for (int64_t i = 0; i < tokens.shape[1]; i++) {
            int32_t token = *tokens.at<int32_t>(slot, i);
            if (token >= first && token < last) out[token] += *call.input(BIAS_VALUES).at<float>(slot, i);
        }
    }
    if (features & MINIMUM_TOKENS && *call.input(OUTPUT_POSITION).at<int32_t>(slot) < *call.input(MIN_TOKENS).at<int32_t>(slot)) {
        const Tensor& tokens = call.input(END_TOKENS);
        for (int64_t i = 0; i < tokens.shape[1]; i++) {
            int32_t token = *tokens.at<int32_t>(slot, i);
            if (token >= first && token < last) out[token] = -__builtin_inff();
        }
    }
}

}  // namespace

CHECK(adjust_logits) {
    if (call.inputs != 13 || call.outputs != 1)
        return "(logits, logit_slots, features, repetition_penalty, presence_penalty, frequency_penalty, prompt_seen, output_counts, "
               "bias_tokens, bias_values, min_tokens, output_position, end_tokens) -> adjusted";
    const Tensor& logits = call.input(LOGITS);
    if (!is_logits(logits)) return "logits[L, V] of float32 or bfloat16, a row side by side";
    int64_t rows = logits.shape[0], columns = logits.shape[1], slots = call.input(FEATURES).shape[0];
    if (!is_matrix(call.output(0), F32, rows, columns)) return "adjusted[L, V] of float32";
    if (!is_vector(call.input(LOGIT_SLOTS), I32, rows)) return "logit_slots[L] of int32";
    if (!are_vectors(call, I32, slots, FEATURES, MIN_TOKENS, OUTPUT_POSITION))
        return "features, min_tokens and output_position [slots] of int32";
    if (!are_vectors(call, F32, slots, REPETITION_PENALTY, PRESENCE_PENALTY, FREQUENCY_PENALTY))
        return "penalties [slots] of float32";
    if (!is_matrix(call.input(PROMPT_SEEN), U8, slots, columns)) return "prompt_seen[slots, V] of uint8";
    if (!is_matrix(call.input(OUTPUT_COUNTS), I32, slots, columns)) return "output_counts[slots, V] of int32";
    const Tensor& bias = call.input(BIAS_TOKENS);
    if (!is_matrix(bias, I32, slots, bias.shape[1])) return "bias_tokens[slots, B] of int32";
    if (!is_matrix(call.input(BIAS_VALUES), F32, slots, bias.shape[1])) return "bias_values[slots, B] of float32";
    return is_matrix(call.input(END_TOKENS), I32, slots, call.input(END_TOKENS).shape[1]) ? nullptr : "end_tokens[slots, E] of int32";
}
// `adjusted` is written for the rows that ask for an adjustment alone; draw_tokens reads `logits` of the others.
KERNEL(adjust_logits, "") {
    const Asked asked_for = asked(call, LOGIT_SLOTS);
    share_rows(team, asked_for.count(ADJUSTMENTS), call.input(LOGITS).shape[1], [&](int64_t n, int64_t first, int64_t last) {
        int64_t row = asked_for.nth(ADJUSTMENTS, n), slot = asked_for.slots[row];
        if (call.input(LOGITS).type == F32) adjust<float>(call, row, slot, asked_for.of(row), first, last);
        else adjust<bf16>(call, row, slot, asked_for.of(row), first, last);
    });
}
