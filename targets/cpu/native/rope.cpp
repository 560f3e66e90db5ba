// Rotary position embedding (Su et al. 2021, arXiv:2104.09864): its tables, and their use.
#include "rope.h"
#include "wide.h"

// cos and sin of angles given in float32, in double precision: x = n pi/2 + r with |r| <= pi/4, Taylor polynomials in r whose
// first left-out term is below 4e-12. Good for angles up to 2^30.
static inline void cosine_and_sine(Wide x, Wide& cosine, Wide& sine) {
    Wide n = to_whole(x * 0.63661977236758134308);
    Wide r = minus_product(minus_product(x, n, 1.57079632679489655800), n, 6.12323399573676603587e-17);
    Wide s = r * r;
    Wide c = 1.0 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 + s * (-1.0 / 3628800 + s * (1.0 / 479001600))))));
    Wide odd = s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880 + s * (-1.0 / 39916800)))));
    Wide v = r + r * odd;
    WideBits quarter = to_bits(n);
    WideBits swapped = (quarter & 1) != 0;
    cosine = choose(swapped, v, c);
    sine = choose(swapped, c, v);
    cosine = choose(((quarter + 1) & 2) != 0, -cosine, cosine);
    sine = choose((quarter & 2) != 0, -sine, sine);
}

template <class T> static void fill_table(const Call& call, Team& team) {
    const Tensor &positions = call.input(0), &frequencies = call.input(1), &cos = call.output(0), &sin = call.output(1);
    float scaling = static_cast<float>(call.number(0));
    int64_t half = frequencies.shape[0], first, last;
    const float* frequency = frequencies.at<float>();
    team.share(positions.shape[0], 1, first, last);
    for (int64_t row = first; row < last; row++) {
        float position = static_cast<float>(positions.at<int32_t>()[row]);
        T *c = cos.at<T>(row), *s = sin.at<T>(row);
        for (int64_t j = 0; j < half; j += WIDE) {
            int64_t count = half - j < WIDE ? half - j : WIDE;
            float angles[WIDE] = {0}, cosines[WIDE], sines[WIDE];
            for (int64_t i = 0; i < count; i++) angles[i] = position * frequency[j + i];  // rounded to float32, as models do
            Wide cosine, sine;
            cosine_and_sine(widened(angles), cosine, sine);
            narrowed(cosine, cosines);
            narrowed(sine, sines);
            for (int64_t i = 0; i < count; i++) {
                put(c + j + i, cosines[i] * scaling);
                put(s + j + i, sines[i] * scaling);
                c[half + j + i] = c[j + i];
                s[half + j + i] = s[j + i];
            }
        }
    }
}

CHECK(rope_table) {
    if (call.inputs != 2 || call.outputs != 2) return "(positions, inv_freq) -> cos, sin";
    const Tensor &positions = call.input(0), &frequencies = call.input(1), &cos = call.output(0), &sin = call.output(1);
    if (positions.type != I32 || positions.rank != 1 || positions.strides[0] != 1) return "positions[R] of int32";
    if (frequencies.type != F32 || frequencies.rank != 1 || frequencies.strides[0] != 1) return "inv_freq[D / 2] of float32";
    const Tensor* tables[] = {&cos, &sin};
    for (const Tensor* table : tables) {
        if (!is_float(*table) || table->type != cos.type) return "cos and sin of one type, float32 or bfloat16";
        if (table->rank != 2 || table->shape[0] != positions.shape[0] || table->shape[1] != 2 * frequencies.shape[0] || table->strides[1] != 1)
            return "cos and sin [R, D], columns side by side";
    }
    return nullptr;
}
KERNEL(rope_table, "scaling:number=1 layout:choice(half)=half") {
    if (call.output(0).type == F32) fill_table<float>(call, team); else fill_table<bf16>(call, team);
}

template <class T, class Table> static void rope(const Call& call, Team& team) {
    const Tensor &x = call.input(0), &cos = call.input(1), &sin = call.input(2), &out = call.output(0);
    int64_t heads = x.shape[1], first, last;
    team.share(x.shape[0] * heads, 1, first, last);
    for (int64_t at = first; at < last; at++) {
        int64_t row = at / heads, head = at % heads;
        rotate_head(x.at<T>(row, head), cos.at<Table>(row), sin.at<Table>(row), out.at<T>(row, head), x.shape[2], cos.shape[1], call.flag(0));
    }
}

CHECK(rope) {
    if (call.inputs != 3 || call.outputs != 1) return "(x, cos, sin) -> out";
    const Tensor &x = call.input(0), &out = call.output(0);
    if (const char* expected = check_rope_tables(x, call.input(1), call.input(2))) return expected;
    if (out.type != x.type || out.rank != 3 || out.strides[2] != 1) return "out of the type of x, features side by side";
    return out.shape[0] == x.shape[0] && out.shape[1] == x.shape[1] && out.shape[2] == x.shape[2] ? nullptr : "x and out of one shape";
}
KERNEL(rope, "interleaved:flag=0") {
    for_rope_types(call.input(0), call.input(1), [&](auto x, auto table) { rope<decltype(x), decltype(table)>(call, team); });
}
