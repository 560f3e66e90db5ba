// Choosing tokens: the first of the largest for greedy rows, an inverse-CDF draw in token order for the others.
//
// What a row gets depends on its own logits, parameters, seed and output position alone: not on the batch, the threads, or how columns
// were shared out. Weights are float32, e^x to about 1 ulp, and sums float64: a draw differs from runtime/functions/draw_tokens.py only
// where its number lies within about 1e-7 of the edge between two tokens, or a cut does.
#include "cut.h"
#include "largest.h"
#include "philox.h"
#include "sampling.h"

namespace {

enum Operand { LOGITS, ADJUSTED, LOGIT_SLOTS, FEATURES, TEMPERATURE, TOP_K, TOP_P, MIN_P, SEED, OUTPUT_POSITION };

constexpr int64_t PIECE = 512;  // columns whose weights are summed together

int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Offsets in the scratch: the parts' largest values, then a room for each thread that draws.
struct Rooms {
    int64_t padded, sorted, counts, masses, pieces, room, parts;

    Rooms(int64_t rows, int64_t columns, int64_t threads) {
        padded = rounded_up(columns, PIECE);
        sorted = padded * 4;
        masses = sorted * 2;
        counts = masses + BINS * 8;
        pieces = counts + BINS * 4;
        room = pieces + rounded_up(padded / PIECE * 8, 64);
        parts = rounded_up(rows * threads * static_cast<int64_t>(sizeof(Largest)), 64);
    }
};

template <class T> void scale(const T* x, int64_t columns, float largest, float temperature, const RowSpace& row) {
    const Vec top = all(largest), divisor = all(temperature);
    for_vectors(columns, [&](int64_t k, auto lanes) { store(row.scaled + k, (load(x + k, lanes) - top) / divisor, lanes); });
    for (int64_t k = columns; k < row.padded; k++) row.scaled[k] = -__builtin_inff();
}

double next_below(double positive) {
    int64_t bits;
    __builtin_memcpy(&bits, &positive, 8);
    bits--;
    __builtin_memcpy(&positive, &bits, 8);
    return positive;
}

// The first token whose running sum passes chance times the total, among those whose scaled logit is at least `lowest`.
int32_t draw(const RowSpace& row, double* pieces, float lowest, double chance) {
    const Vec least = all(lowest);
    double total = 0;
    for (int64_t k = 0; k < row.padded; k += PIECE) {
        WideSum sum;
        for (int64_t i = k; i < k + PIECE; i += WIDTH) {
            Vec scaled = load(row.scaled + i);
            if (lanes_at_least(scaled, least)) sum.add(where_less(scaled, least, zero(), exponential(scaled)));
        }
        pieces[k / PIECE] = sum.total();
        total += pieces[k / PIECE];
    }
    double target = chance * total, running = 0, below = next_below(total);
    if (target > below) target = below;  // by rounding: so that a piece always passes it, and a token of weight 0 is never taken
    int64_t piece = 0;
    for (; running + pieces[piece] <= target; piece++) running += pieces[piece];
    int64_t found = piece * PIECE;
    for (int64_t k = found; k < (piece + 1) * PIECE; k++) {
        double weight = row.scaled[k] >= lowest ? weight_of(row.scaled[k]) : 0;
        if (weight == 0) continue;
        found = k;
        running += weight;
        if (running > target) break;
    }
    return static_cast<int32_t>(found);
}

template <class T> int32_t draw_row(const Call& call, const T* x, Largest largest, int64_t slot, int32_t features, char* room) {
    int64_t columns = call.input(LOGITS).shape[1];
    Rooms at(0, columns, 0);
    RowSpace row{reinterpret_cast<float*>(room), reinterpret_cast<float*>(room + at.sorted),
                 reinterpret_cast<int32_t*>(room + at.counts), reinterpret_cast<double*>(room + at.masses), at.padded};
    scale(x, columns, largest.value, *call.input(TEMPERATURE).at<float>(slot), row);
    float lowest = -__builtin_inff();
    if (features & FILTERS) {
        int32_t top_k = *call.input(TOP_K).at<int32_t>(slot);
        float min_p = *call.input(MIN_P).at<float>(slot);
        Filter filter{top_k > 0 && top_k < columns ? top_k : 0, static_cast<double>(*call.input(TOP_P).at<float>(slot)), lowest};
        if (min_p > 0) filter.least = static_cast<float>(natural_logarithm(static_cast<double>(min_p)));
        lowest = lowest_kept(row, filter);
    }
    double chance = uniform(*call.input(SEED).at<int64_t>(slot), *call.input(OUTPUT_POSITION).at<int32_t>(slot));
    return draw(row, reinterpret_cast<double*>(room + at.pieces), lowest, chance);
}

template <class T> void draw_tokens(const Call& call, Team& team) {
    const Tensor &logits = call.input(LOGITS), &adjusted = call.input(ADJUSTED);
    const Asked asked_for = asked(call, LOGIT_SLOTS);
    const int64_t rows = asked_for.rows, columns = logits.shape[1];
    Largest* parts = team.scratch<Largest>();
    for (int64_t row = 0; row < rows; row++) parts[row * team.size + team.index] = {0, -1};
    share_rows(team, rows, columns, [&](int64_t row, int64_t first, int64_t last) {
        if (asked_for.slots[row] < 0) return;
        bool changed = asked_for.of(row) & ADJUSTMENTS;
        parts[row * team.size + team.index] =
            changed ? find_largest(adjusted.at<float>(row), first, last) : find_largest(logits.at<T>(row), first, last);
    });
    team.barrier();
    if (team.index >= rows) return;  // there is room for as many threads as rows
    Rooms at(rows, columns, team.size);
    char* room = team.scratch<char>(at.parts + at.room * team.index);
    for (int64_t row; (row = team.next()) < rows;) {
        int32_t& token = *call.output(0).at<int32_t>(row);
        int32_t slot = asked_for.slots[row], features = asked_for.of(row);
        Largest best{0, -1};
        for (int32_t part = 0; part < team.size; part++) best.join(parts[row * team.size + part]);
        if (slot < 0) token = 0;
        else if (!best.is_finite()) token = -1;
        else if (!(features & RANDOM)) token = best.index;
        else if (features & ADJUSTMENTS) token = draw_row(call, adjusted.at<float>(row), best, slot, features, room);
        else token = draw_row(call, logits.at<T>(row), best, slot, features, room);
    }
}

}  // namespace

CHECK(draw_tokens) {
    if (call.inputs != 10 || call.outputs != 1) return "(logits, adjusted, logit_slots, features, temperature, top_k, top_p, "
                                                       "min_p, seed, output_position) -> tokens";
    const Tensor& logits = call.input(LOGITS);
    if (!is_logits(logits)) return "logits[L, V] of float32 or bfloat16, a row side by side";
    int64_t rows = logits.shape[0], slots = call.input(FEATURES).shape[0];
    if (!is_matrix(call.input(ADJUSTED), F32, rows, logits.shape[1])) return "adjusted[L, V] of float32";
    if (!is_vector(call.input(LOGIT_SLOTS), I32, rows) || !is_vector(call.output(0), I32, rows))
        return "logit_slots[L] and tokens[L] of int32";
    if (!are_vectors(call, I32, slots, FEATURES, TOP_K, OUTPUT_POSITION))
        return "features, top_k and output_position [slots] of int32";
    if (!are_vectors(call, F32, slots, TEMPERATURE, TOP_P, MIN_P))
        return "temperature, top_p and min_p [slots] of float32";
    return is_vector(call.input(SEED), I64, slots) ? nullptr : "seed[slots] of int64";
}
SCRATCH(draw_tokens) {
    int64_t rows = call.input(LOGITS).shape[0];
    Rooms at(rows, call.input(LOGITS).shape[1], threads);
    return at.parts + at.room * (rows < threads ? rows : threads);
}
KERNEL(draw_tokens, "") {
    if (call.input(LOGITS).type == F32) draw_tokens<float>(call, team); else draw_tokens<bf16>(call, team);
}
