// Writing sampled tokens back into their slots.
#include "sampling.h"

namespace {

enum Operand { TOKENS, LOGIT_SLOTS, FEATURES };
enum Result { LAST_TOKENS, COUNTS, POSITION };

}  // namespace

CHECK(record_tokens) {
    if (call.inputs != 3 || call.outputs != 3)
        return "(tokens, logit_slots, features) -> last_tokens, output_counts, output_position";
    const Tensor &tokens = call.input(TOKENS), &features = call.input(FEATURES), &counts = call.output(COUNTS);
    int64_t slots = features.shape[0];
    if (!is_vector(tokens, I32, tokens.shape[0]) || !is_vector(call.input(LOGIT_SLOTS), I32, tokens.shape[0]))
        return "tokens[L] and logit_slots[L] of int32";
    if (!is_vector(features, I32, slots) || !is_vector(call.output(LAST_TOKENS), I32, slots) ||
        !is_vector(call.output(POSITION), I32, slots))
        return "features, last_tokens and output_position [slots] of int32";
    return is_matrix(counts, I32, slots, counts.shape[1]) ? nullptr : "output_counts[slots, V] of int32";
}
// Padded rows (slot -1) and failed rows (token -1) record nothing. A slot has one logit row a step.
KERNEL(record_tokens, "") {
    const Asked asked_for = asked(call, LOGIT_SLOTS);
    int64_t first, last;
    team.share(asked_for.rows, 64, first, last);
    for (int64_t row = first; row < last; row++) {
        int32_t slot = asked_for.slots[row], token = *call.input(TOKENS).at<int32_t>(row);
        if (slot < 0 || token < 0) continue;
        *call.output(LAST_TOKENS).at<int32_t>(slot) = token;
        *call.output(POSITION).at<int32_t>(slot) += 1;
        if (asked_for.of(row) & PENALTIES) *call.output(COUNTS).at<int32_t>(slot, token) += 1;
    }
}
