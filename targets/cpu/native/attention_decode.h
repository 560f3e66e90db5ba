// One new token against its context (flash-decoding: Dao et al. 2023). The query heads of a group share every load of keys and
// values; a context is worked through in splits whose partial results are merged in order, by whatever threads made them.
#pragma once
#include "attention.h"
#include "rope.h"
#include "transpose.h"

// Processors with AMX take half as many vector products in pairs as single ones, in the same time: there pairs gain nothing, and
// cost shuffles.
#if defined(__AMX_BF16__)
template <class T> constexpr bool DECODES_IN_PAIRS = false;
#else
template <class T> constexpr bool DECODES_IN_PAIRS = IN_PAIRS<T>;
#endif

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

// Neighbouring tokens of one block: where the first one's keys (or values) of a head lie, and how many there are.
template <class T> struct Piece {
    const T* rows;
    int count;
};

// Rows that are worked on next, asked for a few at a time meanwhile: memory is then never idle, also where a block ends. They go to
// the second cache: in the first one they would push out what is worked on. LINES is how many cache lines a row touches, 0 where
// that is known at run time only.
template <int LINES> struct Ahead {
    static constexpr int SECOND_CACHE = 2;  // of __builtin_prefetch
    const char* row = nullptr;
    int64_t stride = 0, lines = 0;
    int count = 0;

    void ask(int rows) {
        if (rows > count) rows = count;
        count -= rows;
        for (; rows > 0; rows--, row += stride)
            for (int64_t line = 0; line < (LINES ? LINES : lines); line++) __builtin_prefetch(row + 64 * line, 0, SECOND_CACHE);
    }
    void ask_all() { ask(count); }
};

// Weights as the products with values want them.
template <class T, bool pairs> struct WeightOf { using Type = float; };
template <class T> struct WeightOf<T, true> { using Type = T; };
template <class T> using Weight = typename WeightOf<T, DECODES_IN_PAIRS<T>>::Type;

// Where a thread keeps what it works on: for each head of a group a query, a score (then a weight) for each token of a stretch,
// and the partial result.
template <class T> struct DecodeSpace {
    T* queries;
    float* scores;
    Weight<T>* weights;
};

// HEAD_DIM is the size of a head, 0 where it is known at run time only.
template <class T, int HEAD_DIM> struct Decode {
    using U = Unit<T, DECODES_IN_PAIRS<T>>;
    using Weight = ::Weight<T>;
    static constexpr int AT_ONCE = WIDTH == 16 ? 4 : 2;                     // heads
    static constexpr int SUMS = WIDTH == 16 ? 16 : 8;                       // vectors kept in registers
    static constexpr int STRETCH = 256, PADDED_STRETCH = STRETCH + WIDTH;  // tokens between two looks at the largest score
    const Attention<T>& attention;
    int64_t run_time_units;

    using Ahead = ::Ahead<HEAD_DIM * static_cast<int>(sizeof(T)) / 64>;

    explicit Decode(const Attention<T>& a) : attention(a), run_time_units((a.head_dim + U::SPAN - 1) / U::SPAN) {}

    int64_t units() const { return HEAD_DIM ? HEAD_DIM / U::SPAN : run_time_units; }  // of a head's row
    int64_t padded() const { return units() * U::SPAN; }
    int64_t head_dim() const { return HEAD_DIM ? HEAD_DIM : attention.head_dim; }

    // Dot products of four keys with H heads' queries: in each group of four lanes sums of parts of each.
    template <int H> void dots(const T* const (&rows)[4], const T* queries, Vec (&result)[H]) const {
        Vec sums[H][4];
        for (int h = 0; h < H; h++)
            for (int t = 0; t < 4; t++) sums[h][t] = zero();
        int64_t whole = head_dim() / U::SPAN;
        for (int64_t u = 0; u < whole; u++) {
            U key[4] = {U::of(rows[0] + u * U::SPAN), U::of(rows[1] + u * U::SPAN), U::of(rows[2] + u * U::SPAN),
                        U::of(rows[3] + u * U::SPAN)};
            for (int h = 0; h < H; h++) {
                U query = U::of(queries + h * padded() + u * U::SPAN);
                for (int t = 0; t < 4; t++) sums[h][t] = key[t].dot(query, sums[h][t]);
            }
        }
        int rest = static_cast<int>(head_dim() - whole * U::SPAN);
        if (rest) {
            for (int t = 0; t < 4; t++) {
                U key = U::some(rows[t] + whole * U::SPAN, rest);
                for (int h = 0; h < H; h++) sums[h][t] = key.dot(U::of(queries + h * padded() + whole * U::SPAN), sums[h][t]);
            }
        }
        for (int h = 0; h < H; h++) result[h] = sums_of_fours(sums[h][0], sums[h][1], sums[h][2], sums[h][3]);
    }

    // Dot products of a piece's keys with H heads' queries, into rows of `scores`.
    template <int H> void dots(Piece<T> keys, const T* queries, float* scores, Ahead ahead) const {
        int64_t stride = attention.token_stride;
        for (int first = 0; first < keys.count; first += WIDTH) {
            Vec groups[H][WIDTH / 4];
            for (int four = 0; four < WIDTH / 4; four++) {
                int left = keys.count - first - 4 * four;
                if (left <= 0) {
                    for (int h = 0; h < H; h++) groups[h][four] = zero();
                    continue;
                }
                ahead.ask(4);
                const T* row = keys.rows + (first + 4 * four) * stride;
                const T* rows[4] = {row, row + stride, row + 2 * stride, row + 3 * stride};
                for (int t = left; t < 4; t++) rows[t] = row;  // its score is written over, or hidden
                Vec found[H];
                dots<H>(rows, queries, found);
                for (int h = 0; h < H; h++) groups[h][four] = found[h];
            }
            for (int h = 0; h < H; h++) store(scores + h * PADDED_STRETCH + first, sum_groups(groups[h]));
        }
        ahead.ask_all();
    }

    // Dot products of one head with `count` tokens become weights; what the head has summed up is made to fit them.
    void weigh(float* scores, int count, Weight* weights, Partial& partial, float* sums) const {
        Vec most = all(NO_SCORE);
        for (int t = 0; t < count; t += WIDTH) {
            Vec score = attention.score(load(scores + t));
            if (count - t < WIDTH) score = first_of(count - t, score);
            store(scores + t, score);
            most = vmax(most, score);
        }
        float before = partial.largest, after = largest(most);
        if (after > before) {
            float factor = exponential(before - after);
            partial = {after, partial.total * factor};
            for (int64_t at = 0; at < padded(); at += WIDTH) store(sums + at, load(sums + at) * all(factor));
        } else {
            after = before;
        }
        Vec total = zero();
        for (int t = 0; t < count; t += WIDTH) {
            Vec weight = rounded<T>(exponential(load(scores + t) - all(after)));
            total = total + weight;
            store(weights + t, weight);
        }
        partial.total += sum(total);
    }
    static Vec first_of(int count, Vec score) {
        alignas(64) float lanes[WIDTH];
        store(lanes, score);
        for (int i = count; i < WIDTH; i++) lanes[i] = -__builtin_inff();
        return load(lanes);
    }

    // How many units of H heads' sums are kept in registers at once.
    template <int H> static constexpr int units_at_once() {
        int units = 1;
        while (HEAD_DIM && 2 * units * H * U::VECTORS <= SUMS && 2 * units <= HEAD_DIM / U::SPAN) units *= 2;
        return units;
    }

    // sums[h] += weights[h] . values of a piece
    template <int H> void add_values(Piece<T> values, const Weight* weights, float* sums, Ahead ahead) const {
        constexpr int COLUMNS = units_at_once<H>();
        add_columns<H, COLUMNS>(values, 0, weights, sums, ahead);
        Ahead nothing;
        for (int64_t u = COLUMNS; u < units(); u += COLUMNS) add_columns<H, COLUMNS>(values, u, weights, sums, nothing);
        ahead.ask_all();
    }

    // The same for COLUMNS units from `unit` on.
    template <int H, int COLUMNS>
    void add_columns(Piece<T> values, int64_t unit, const Weight* weights, float* sums, Ahead& ahead) const {
        int64_t stride = attention.token_stride, left = head_dim() - unit * U::SPAN;
        int lanes = HEAD_DIM || left >= U::SPAN ? U::SPAN : static_cast<int>(left);
        const T* column = values.rows + unit * U::SPAN;
        float* place = sums + unit * U::SPAN;
        Vec sum[H][COLUMNS][U::VECTORS];
        for_sums<H, COLUMNS>([&](int h, int u, int i) { sum[h][u][i] = load(place + h * padded() + u * U::SPAN + i * WIDTH); });
        int t = 0;
        if constexpr (DECODES_IN_PAIRS<T>) {
            for (; t < values.count; t += 2) {
                ahead.ask(2);
                Vec pairs[COLUMNS][U::VECTORS];
                for (int u = 0; u < COLUMNS; u++) {
                    const T* row = column + t * stride + u * U::SPAN;
                    U second = t + 1 < values.count ? part(row + stride, lanes) : U::nothing();
                    U::add_pair(part(row, lanes), second, pairs[u][0], pairs[u][1]);
                }
                for (int h = 0; h < H; h++) {
                    float both;
                    __builtin_memcpy(&both, weights + h * PADDED_STRETCH + t, 4);
                    for (int u = 0; u < COLUMNS; u++)
                        for (int i = 0; i < U::VECTORS; i++) sum[h][u][i] = U::weigh(sum[h][u][i], pairs[u][i], all(both));
                }
            }
        } else {
            for (; t < values.count; t++) {
                ahead.ask(1);
                for (int u = 0; u < COLUMNS; u++) {
                    U value = part(column + t * stride + u * U::SPAN, lanes);
                    for (int h = 0; h < H; h++) value.add_to(sum[h][u], all(weights[h * PADDED_STRETCH + t]));
                }
            }
        }
        for_sums<H, COLUMNS>([&](int h, int u, int i) { store(place + h * padded() + u * U::SPAN + i * WIDTH, sum[h][u][i]); });
    }
    static U part(const T* p, int lanes) { return HEAD_DIM || lanes == U::SPAN ? U::of(p) : U::some(p, lanes); }
    template <int H, int COLUMNS, class Body> static void for_sums(Body body) {
        for (int h = 0; h < H; h++)
            for (int u = 0; u < COLUMNS; u++)
                for (int i = 0; i < U::VECTORS; i++) body(h, u, i);
    }

    // body(H, first head) over a group's heads, H of them at once.
    template <class Body> void for_heads(Body body) const {
        int64_t h = 0;
        for (; h + AT_ONCE <= attention.group; h += AT_ONCE) body(Count<AT_ONCE>{}, h);
        switch (attention.group - h) {
            case 3: if constexpr (AT_ONCE > 3) body(Count<3>{}, h); return;
            case 2: if constexpr (AT_ONCE > 2) body(Count<2>{}, h); return;
            case 1: return body(Count<1>{}, h);
        }
    }

    // The tokens from `position` on that lie in one block and before `last`.
    Piece<T> piece(const Tensor& cache, int64_t sequence, int64_t kv_head, int64_t position, int64_t last) const {
        int64_t left = attention.block_tokens - position % attention.block_tokens;
        if (left > last - position) left = last - position;
        return {attention.token(cache, sequence, position, kv_head), static_cast<int>(left < STRETCH ? left : STRETCH)};
    }
    Ahead ahead(Piece<T> piece) const {
        int64_t size = sizeof(T);
        return {reinterpret_cast<const char*>(piece.rows), attention.token_stride * size, (head_dim() * size + 63) / 64, piece.count};
    }

    Ahead first_keys(int64_t sequence, int64_t first, int64_t last, int64_t kv_head) const {
        return ahead(piece(attention.k_cache, sequence, kv_head, first, last));
    }

    // Positions [first, last) of a sequence for the heads of one group, whose queries are in `space`. `then` is what is worked on
    // next. `sums`[group][padded] and `partial`[group] start as nothing.
    void run(int64_t sequence, int64_t first, int64_t last, int64_t kv_head, const DecodeSpace<T>& space, const Ahead& then,
             Partial* partial, float* sums) const {
        const Tensor &k_cache = attention.k_cache, &v_cache = attention.v_cache;
        for (int64_t at = 0; at < attention.group * padded(); at += WIDTH) store(sums + at, zero());
        for (int64_t h = 0; h < attention.group; h++) partial[h] = {NO_SCORE, 0};
        for (int64_t start = first; start < last;) {
            int64_t end = start + STRETCH < last ? start + STRETCH : last;
            Piece<T> keys = piece(k_cache, sequence, kv_head, start, end), values = piece(v_cache, sequence, kv_head, start, end);
            for (int64_t at = start; at < end;) {
                int64_t next = at + keys.count;
                Piece<T> following = next < end ? piece(k_cache, sequence, kv_head, next, end) : values;
                Ahead asked = ahead(following);
                for_heads([&](auto heads, int64_t h) {
                    dots<heads.value>(keys, space.queries + h * padded(), space.scores + h * PADDED_STRETCH + (at - start), asked);
                    asked = Ahead();
                });
                at = next;
                keys = following;
            }
            for (int64_t h = 0; h < attention.group; h++) {
                int64_t row = h * PADDED_STRETCH;
                weigh(space.scores + row, static_cast<int>(end - start), space.weights + row, partial[h], sums + h * padded());
            }
            for (int64_t at = start; at < end;) {
                int64_t next = at + values.count;
                Ahead asked = then;
                Piece<T> following = {nullptr, 0};
                if (next < end) asked = ahead(following = piece(v_cache, sequence, kv_head, next, end));
                else if (next < last) asked = first_keys(sequence, next, last, kv_head);
                for_heads([&](auto heads, int64_t h) {
                    add_values<heads.value>(values, space.weights + h * PADDED_STRETCH + (at - start), sums + h * padded(), asked);
                    asked = Ahead();
                });
                at = next;
                values = following;
            }
            start = end;
        }
    }

    // Adds a later split's result of one head.
    void merge(Partial& partial, float* sums, const Partial& later, const float* later_sums) const {
        float most = partial.largest > later.largest ? partial.largest : later.largest;
        float keep = exponential(partial.largest - most), take = exponential(later.largest - most);
        partial = {most, partial.total * keep + later.total * take};
        for (int64_t at = 0; at < padded(); at += WIDTH) store(sums + at, load(sums + at) * all(keep) + load(later_sums + at) * all(take));
    }

    void write(int64_t row, int64_t head, const Partial& partial, const float* sums) const {
        float share = share_of(attention, head, partial);
        T* out = attention.out.template at<T>(row, head);
        for (int64_t u = 0; u < units(); u++) {
            int64_t left = head_dim() - u * U::SPAN;
            Vec sum[U::VECTORS];
            for (int i = 0; i < U::VECTORS; i++) sum[i] = load(sums + u * U::SPAN + i * WIDTH) * all(share);
            U::write(sum, out + u * U::SPAN, left < U::SPAN ? static_cast<int>(left) : U::SPAN);
        }
    }

    // The queries of a group, each padded with zeros to whole units.
    void take_queries(int64_t row, int64_t kv_head, T* queries) const {
        for (int64_t h = 0; h < attention.group; h++) {
            const T* from = attention.q.template at<T>(row, kv_head * attention.group + h);
            copy_bytes(queries + h * padded(), from, head_dim() * sizeof(T));
            for (int64_t i = head_dim(); i < padded(); i++) queries[h * padded() + i] = 0;
        }
    }
};
