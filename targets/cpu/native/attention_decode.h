// One new token against its context (flash-decoding: Dao et al. 2023). The query heads of a group share every load of keys and
// values; a context is worked through in splits whose partial results are merged in order, by whatever threads made them.
#pragma once
#include "attention.h"
#include "rope.h"
#include "transpose.h"

// SPAN neighbouring elements of a row as a kernel takes them. Sums over tokens of such units are VECTORS vectors of floats,
// whose order of columns is undone when the result is written.
template <class T, bool pairs> struct Unit;

template <> struct Unit<float, false> {
    static constexpr int SPAN = WIDTH, VECTORS = 1;
    Vec x;
    static Unit of(const float* p) { return {load(p)}; }
    static Unit some(const float* p, int n) { return {load_some(p, n)}; }
    Vec dot(Unit other, Vec sum) const { return fma(x, other.x, sum); }
    void add_to(Vec (&sum)[1], Vec weight) const { sum[0] = fma(x, weight, sum[0]); }
    static void write(const Vec (&sum)[1], float* out, int n) { n == SPAN ? store(out, sum[0]) : store_some(out, sum[0], n); }
};

// Even and odd elements apart: widening is then a shift or a mask.
template <> struct Unit<bf16, false> {
    static constexpr int SPAN = 2 * WIDTH, VECTORS = 2;
    Vec even, odd;
#if defined(__AVX512F__)
    static Unit split(__m512i x) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
                _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
    }
    static Unit of(const bf16* p) { return split(_mm512_loadu_si512(p)); }
#else
    static Unit split(__m256i x) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
                _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(static_cast<int>(0xffff0000))))};
    }
    static Unit of(const bf16* p) { return split(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
#endif
    static Unit some(const bf16* p, int n) {
        Unit result;
        unzip(load_some(p, n < WIDTH ? n : WIDTH), n > WIDTH ? load_some(p + WIDTH, n - WIDTH) : zero(), result.even, result.odd);
        return result;
    }
    Vec dot(Unit other, Vec sum) const { return fma(odd, other.odd, fma(even, other.even, sum)); }
    void add_to(Vec (&sum)[2], Vec weight) const {
        sum[0] = fma(even, weight, sum[0]);
        sum[1] = fma(odd, weight, sum[1]);
    }
    static void write(const Vec (&sum)[2], bf16* out, int n) {
        Vec a, b;
        zip(sum[0], sum[1], a, b);
        if (n == SPAN) {
            store(out, a);
            store(out + WIDTH, b);
        } else {
            store_some(out, a, n < WIDTH ? n : WIDTH);
            if (n > WIDTH) store_some(out + WIDTH, b, n - WIDTH);
        }
    }
};

#if defined(__AVX512BF16__)
// Products in pairs: of neighbouring columns for scores, of neighbouring tokens for values.
template <> struct Unit<bf16, true> {
    static constexpr int SPAN = 32, VECTORS = 2;
    __m512i x;
    static Unit of(const bf16* p) { return {_mm512_loadu_si512(p)}; }
    static Unit some(const bf16* p, int n) { return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1ull << n) - 1), p)}; }
    static Unit nothing() { return {_mm512_setzero_si512()}; }
    Vec dot(Unit other, Vec sum) const { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)other.x); }
    // this token and the next one; `weights` has both their weights in every lane
    static void add_pair(Unit first, Unit second, Vec& low, Vec& high) {
        low = _mm512_castsi512_ps(_mm512_unpacklo_epi16(first.x, second.x));
        high = _mm512_castsi512_ps(_mm512_unpackhi_epi16(first.x, second.x));
    }
    static Vec weigh(Vec sum, Vec pairs, Vec weights) { return _mm512_dpbf16_ps(sum, (__m512bh)pairs, (__m512bh)weights); }
    static void write(const Vec (&sum)[2], bf16* out, int n) {
        __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        Vec a = _mm512_permutex2var_ps(sum[0], first, sum[1]);
        Vec b = _mm512_permutex2var_ps(sum[0], _mm512_add_epi32(first, _mm512_set1_epi32(8)), sum[1]);
        if (n == SPAN) {
            store(out, a);
            store(out + WIDTH, b);
        } else {
            store_some(out, a, n < WIDTH ? n : WIDTH);
            if (n > WIDTH) store_some(out + WIDTH, b, n - WIDTH);
        }
    }
};
#endif

// Softmax sums of one query head: the largest score, the sum of e^(score - largest), and that of the values so weighted.
struct Partial {
    float largest, total;
};

template <class T> struct Decode {
    using U = Unit<T, IN_PAIRS<T>>;
    static constexpr int TOKENS = 64;  // at a time
    const Attention<T>& attention;
    int64_t units, padded;  // a head's row in units; its elements, padded to whole units

    explicit Decode(const Attention<T>& a)
        : attention(a), units((a.head_dim + U::SPAN - 1) / U::SPAN), padded(units * U::SPAN) {}

    // Dot products of `count` tokens' keys (at most WIDTH, side by side in the result) with H heads' queries.
    template <int H> void dots(const T* keys, int count, const T* queries, Vec (&result)[H]) const {
        Vec groups[H][WIDTH / 4];
        int64_t whole = attention.head_dim / U::SPAN;
        int rest = static_cast<int>(attention.head_dim - whole * U::SPAN);
        for (int four = 0; four < WIDTH / 4; four++) {
            if (4 * four >= count) {
                for (int h = 0; h < H; h++) groups[h][four] = zero();
                continue;
            }
            const T* rows[4];
            for (int t = 0; t < 4; t++) {
                int token = 4 * four + t < count ? 4 * four + t : count - 1;  // what lies beyond is masked by the caller
                rows[t] = keys + token * attention.token_stride;
            }
            Vec sums[H][4];
            for (int h = 0; h < H; h++)
                for (int t = 0; t < 4; t++) sums[h][t] = zero();
            for (int64_t u = 0; u < whole; u++) {
                U key[4] = {U::of(rows[0] + u * U::SPAN), U::of(rows[1] + u * U::SPAN), U::of(rows[2] + u * U::SPAN),
                            U::of(rows[3] + u * U::SPAN)};
                for (int h = 0; h < H; h++) {
                    U query = U::of(queries + h * padded + u * U::SPAN);
                    for (int t = 0; t < 4; t++) sums[h][t] = key[t].dot(query, sums[h][t]);
                }
            }
            if (rest) {
                for (int t = 0; t < 4; t++) {
                    U key = U::some(rows[t] + whole * U::SPAN, rest);
                    for (int h = 0; h < H; h++) sums[h][t] = key.dot(U::of(queries + h * padded + whole * U::SPAN), sums[h][t]);
                }
            }
            for (int h = 0; h < H; h++) groups[h][four] = sums_of_fours(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
        }
        for (int h = 0; h < H; h++) result[h] = sum_groups(groups[h]);
    }

    static U value(const T* p, int n) { return n == U::SPAN ? U::of(p) : U::some(p, n); }

    // sums[h] = sums[h] * factor[h] + weights[h] . values over `count` tokens.
    template <int H> void weigh(const T* values, int count, const T (&weights)[H][TOKENS + 2], const float* factor, float* sums) const {
        int64_t stride = attention.token_stride;
        for (int64_t u = 0; u < units; u++) {
            int64_t left = attention.head_dim - u * U::SPAN;
            int lanes = left < U::SPAN ? static_cast<int>(left) : U::SPAN;
            const T* column = values + u * U::SPAN;
            float* place = sums + u * U::SPAN;
            Vec sum[H][U::VECTORS];
            for (int h = 0; h < H; h++)
                for (int i = 0; i < U::VECTORS; i++) sum[h][i] = load(place + h * padded + i * WIDTH) * all(factor[h]);
            int t = 0;
            if constexpr (IN_PAIRS<T>) {
                for (; t < count; t += 2) {
                    U first = value(column + t * stride, lanes);
                    U second = t + 1 < count ? value(column + (t + 1) * stride, lanes) : U::nothing();
                    Vec low, high;
                    U::add_pair(first, second, low, high);
                    for (int h = 0; h < H; h++) {
                        float both;
                        __builtin_memcpy(&both, &weights[h][t], 4);
                        sum[h][0] = U::weigh(sum[h][0], low, all(both));
                        sum[h][1] = U::weigh(sum[h][1], high, all(both));
                    }
                }
            } else {
                for (; t < count; t++) {
                    U token = value(column + t * stride, lanes);
                    for (int h = 0; h < H; h++) token.add_to(sum[h], all(to_float(weights[h][t])));
                }
            }
            for (int h = 0; h < H; h++)
                for (int i = 0; i < U::VECTORS; i++) store(place + h * padded + i * WIDTH, sum[h][i]);
        }
    }

    // H heads against `count` neighbouring tokens of one block, added to their partial results.
    template <int H> void attend(const T* keys, const T* values, int count, const T* queries, Partial* partial, float* sums) const {
        alignas(64) float scores[H][TOKENS];
        T weights[H][TOKENS + 2];
        Vec most[H];
        for (int h = 0; h < H; h++) most[h] = all(NO_SCORE);
        for (int t = 0; t < count; t += WIDTH) {
            Vec found[H];
            int lanes = count - t < WIDTH ? count - t : WIDTH;
            dots<H>(keys + t * attention.token_stride, lanes, queries, found);
            for (int h = 0; h < H; h++) {
                store(scores[h] + t, attention.score(found[h]));
                for (int i = lanes; i < WIDTH; i++) scores[h][t + i] = -__builtin_inff();
                most[h] = vmax(most[h], load(scores[h] + t));
            }
        }
        float factor[H];
        for (int h = 0; h < H; h++) {
            float before = partial[h].largest, after = largest(most[h]);
            if (after < before) after = before;
            factor[h] = after == before ? 1.0f : exponential(before - after);
            Vec total = zero();
            for (int t = 0; t < count; t += WIDTH) {
                Vec weight = rounded<T>(exponential(load(scores[h] + t) - all(after)));
                total = total + weight;
                store(weights[h] + t, weight);
            }
            partial[h] = {after, partial[h].total * factor[h] + sum(total)};
        }
        weigh<H>(values, count, weights, factor, sums);
    }

    // Positions [first, last) of a sequence for the heads of one group. `sums`[group][padded] and `partial`[group] start as nothing.
    void run(int64_t sequence, int64_t first, int64_t last, int64_t kv_head, const T* queries, Partial* partial, float* sums) const {
        int64_t group = attention.group;
        for (int64_t at = 0; at < group * padded; at += WIDTH) store(sums + at, zero());
        for (int64_t h = 0; h < group; h++) partial[h] = {NO_SCORE, 0};
        for (int64_t position = first; position < last;) {
            int64_t end = (position / attention.block_tokens + 1) * attention.block_tokens;
            if (end > last) end = last;
            if (end > position + TOKENS) end = position + TOKENS;
            const T* keys = attention.token(attention.k_cache, sequence, position, kv_head);
            const T* values = attention.token(attention.v_cache, sequence, position, kv_head);
            int count = static_cast<int>(end - position);
            int64_t h = 0;
            for (; h + 4 <= group; h += 4) attend<4>(keys, values, count, queries + h * padded, partial + h, sums + h * padded);
            switch (group - h) {
                case 3: attend<3>(keys, values, count, queries + h * padded, partial + h, sums + h * padded); break;
                case 2: attend<2>(keys, values, count, queries + h * padded, partial + h, sums + h * padded); break;
                case 1: attend<1>(keys, values, count, queries + h * padded, partial + h, sums + h * padded); break;
            }
            position = end;
        }
    }

    // Adds a later split's result of one head.
    void merge(Partial& partial, float* sums, const Partial& later, const float* later_sums) const {
        float most = partial.largest > later.largest ? partial.largest : later.largest;
        float keep = exponential(partial.largest - most), take = exponential(later.largest - most);
        partial = {most, partial.total * keep + later.total * take};
        for (int64_t at = 0; at < padded; at += WIDTH) store(sums + at, load(sums + at) * all(keep) + load(later_sums + at) * all(take));
    }

    void write(int64_t row, int64_t head, const Partial& partial, const float* sums) const {
        float share = share_of(attention, head, partial);
        T* out = attention.out.template at<T>(row, head);
        for (int64_t u = 0; u < units; u++) {
            int64_t left = attention.head_dim - u * U::SPAN;
            Vec sum[U::VECTORS];
            for (int i = 0; i < U::VECTORS; i++) sum[i] = load(sums + u * U::SPAN + i * WIDTH) * all(share);
            U::write(sum, out + u * U::SPAN, left < U::SPAN ? static_cast<int>(left) : U::SPAN);
        }
    }

    // What weighted values are multiplied with in the end: a sink takes part in the total only.
    static float share_of(const Attention<T>& attention, int64_t head, const Partial& partial) {
        if (!attention.sinks) return 1.0f / partial.total;
        float sink = attention.sink(head), most = partial.largest > sink ? partial.largest : sink;
        float keep = exponential(partial.largest - most);
        return keep / (partial.total * keep + exponential(sink - most));
    }

    // The queries of a group, each padded with zeros to whole units.
    void take_queries(int64_t row, int64_t kv_head, T* queries) const {
        for (int64_t h = 0; h < attention.group; h++) {
            const T* from = attention.q.template at<T>(row, kv_head * attention.group + h);
            copy_bytes(queries + h * padded, from, attention.head_dim * sizeof(T));
            for (int64_t i = attention.head_dim; i < padded; i++) queries[h * padded + i] = 0;
        }
    }
};
