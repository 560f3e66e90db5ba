// What the parts of paged attention share: its operands by name, and what happens to scores.
#pragma once
#include "elementary.h"
#include "lanes.h"

// bfloat16 products are taken in pairs where the processor has them.
#if defined(__AVX512BF16__)
template <class T> constexpr bool IN_PAIRS = sizeof(T) == 2;
#else
template <class T> constexpr bool IN_PAIRS = false;
#endif

// Below every score there is: the largest score of nothing.
constexpr float NO_SCORE = -3.0e38f;

template <class T> struct Attention {
    const Tensor &q, &k_cache, &v_cache, &out;
    const int32_t *starts, *lengths, *counts;
    const Tensor& tables;
    const Tensor* sinks;
    int64_t heads, kv_heads, group, head_dim, block_tokens, token_stride;
    float scale, cap;
    int64_t window;

    explicit Attention(const Call& call)
        : q(call.input(0)), k_cache(call.input(1)), v_cache(call.input(2)), out(call.output(0)),
          starts(call.input(3).at<int32_t>()), lengths(call.input(4).at<int32_t>()), counts(call.input(6).at<int32_t>()),
          tables(call.input(5)), sinks(call.inputs > 7 ? &call.input(7) : nullptr), heads(q.shape[1]), kv_heads(k_cache.shape[2]),
          group(heads / kv_heads), head_dim(q.shape[2]), block_tokens(k_cache.shape[1]), token_stride(k_cache.strides[1]),
          scale(static_cast<float>(call.number(0))), cap(static_cast<float>(call.number(2))), window(call.integer(1)) {}

    // The first position that a query at `position` sees.
    int64_t first_visible(int64_t position) const { return window && position >= window ? position - window + 1 : 0; }

    // Where a token's keys (or values) of one head lie; the rest of its block follows, token_stride apart.
    const T* token(const Tensor& cache, int64_t sequence, int64_t position, int64_t kv_head) const {
        int64_t block = tables.at<int32_t>(sequence)[position / block_tokens];
        return cache.at<T>(block, position % block_tokens, kv_head);
    }

    float sink(int64_t head) const {
        return sinks->type == F32 ? sinks->at<float>()[head] : to_float(sinks->at<bf16>()[head]);
    }

    // Scores from dot products.
    Vec score(Vec dots) const {
        Vec scaled = dots * all(scale);
        return cap > 0 ? hyperbolic_tangent(scaled / all(cap)) * all(cap) : scaled;
    }
};

template <int value_> struct Count { static constexpr int value = value_; };

static inline float exponential(float x) {
    alignas(64) float values[WIDTH];
    store(values, exponential(all(x)));
    return values[0];
}

// Softmax sums of one query head: the largest score, the sum of e^(score - largest), and that of the values so weighted.
struct Partial {
    float largest, total;
};

// What weighted values are multiplied with in the end: a sink takes part in the total only.
template <class T> static float share_of(const Attention<T>& attention, int64_t head, const Partial& partial) {
    if (!attention.sinks) return 1.0f / partial.total;
    float sink = attention.sink(head), most = partial.largest > sink ? partial.largest : sink;
    float keep = exponential(partial.largest - most);
    return keep / (partial.total * keep + exponential(sink - most));
}

// Gives `items` room for `count` of them from `at` on, in whole cache lines.
template <class Item> static inline void take(char*& at, Item*& items, int64_t count) {
    items = reinterpret_cast<Item*>(at);
    at += (count * static_cast<int64_t>(sizeof(Item)) + 63) / 64 * 64;
}
