// Many new tokens against their context (flash attention: Dao 2023, arXiv:2307.08691), transposed: the lanes of vectors are
// queries, so that keys and values are taken as they lie, the softmax needs no sum across lanes, and the weights come out in the
// order in which the second product wants them.
//
// A tile is LANES (row, head of the group) pairs. A set of neighbouring tiles shares every block of keys and values, which is
// copied into the thread's own scratch once. In scratch everything is 32-bit words: a float, or a pair of bfloat16 along the
// dimension that is summed over (columns in the first product, tokens in the second). Both products are then what matrix tiles take,
// where there are any.
#pragma once
#include "attention.h"
#include "attention_tiles.h"
#include "transpose.h"

using Word = uint32_t;

static inline Vec multiply_add(Vec sum, const Word* vector, Word scalar, bool pairs) {
#if defined(__AVX512BF16__)
    if (pairs) return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(vector), (__m512bh)_mm512_set1_epi32(static_cast<int>(scalar)));
#else
    (void)pairs;
#endif
    float value;
    __builtin_memcpy(&value, &scalar, 4);
    return fma(load(reinterpret_cast<const float*>(vector)), all(value), sum);
}

template <class T> struct Prefill {
    static constexpr bool PAIRS = IN_PAIRS<T>;
    static constexpr bool IN_TILES = PAIRS && HAVE_TILES;
    static constexpr int PER_WORD = PAIRS ? 2 : 1;
    static constexpr int VECTORS = WIDTH == 16 ? 4 : 2, LANES = VECTORS * WIDTH;  // of a tile
    static constexpr int FOUR = 4;                                                // rows of a register block
    static constexpr int KEYS = 128;                                              // of a block
    static constexpr int SET_LANES = 256;                                         // of a set, when heads are not large
    static constexpr int TOGETHER = IN_TILES ? TILE : FOUR;                       // columns of values that are multiplied at once
    static constexpr float SLACK = 8;  // with tiles, sums follow the largest score when it has grown by so much

    const Attention<T>& attention;
    int64_t depth;    // words of a query or a key
    int64_t key_row;  // words from one key to the next
    int64_t columns;  // head_dim, in fours, or in tiles
    int tiles;        // in a set, at most
    Word *queries, *keys, *values, *weights;
    float *sums, *scores, *largest, *total, *position;

    static int tiles_of(int64_t head_dim) { return SET_LANES / LANES / (head_dim > 128 ? 2 : 1); }

    // Lays out a thread's scratch from `memory` on; `bytes` gets its size.
    Prefill(const Attention<T>& a, char* memory, int64_t& bytes) : attention(a) {
        depth = (a.head_dim + PER_WORD - 1) / PER_WORD;
        columns = (a.head_dim + TOGETHER - 1) / TOGETHER * TOGETHER;
        tiles = tiles_of(a.head_dim);
        int64_t depth_in_vectors = (depth + WIDTH - 1) / WIDTH * WIDTH;
        char* at = memory;
        take(at, queries, tiles * depth_in_vectors * LANES);
        key_row = IN_TILES ? depth_in_vectors : depth;
        take(at, keys, KEYS * key_row);
        take(at, values, columns * KEYS / PER_WORD);
        take(at, weights, KEYS / PER_WORD * LANES);
        take(at, sums, tiles * columns * LANES);
        take(at, scores, KEYS * LANES);
        take(at, largest, tiles * LANES);
        take(at, total, tiles * LANES);
        take(at, position, tiles * LANES);
        bytes = at - memory;
    }

    // One tile of the set at work: `lanes` pairs are real, in `vectors` vectors.
    struct Tile {
        int index, lanes, vectors;
        int64_t first_position, last_position;
    };

    int64_t queries_of_tile() const { return (depth + WIDTH - 1) / WIDTH * WIDTH * LANES; }

    // Transposes the queries of a tile, whose first pair is number `first` of the sequence's rows x group.
    void take_queries(const Tile& tile, int64_t first_row, int64_t first, int64_t kv_head) {
        int64_t padded = (attention.head_dim + 63) / 64 * 64;
        alignas(64) T rows[WIDTH * 64];
        Word* to = queries + tile.index * queries_of_tile();
        constexpr int ELEMENTS = WIDTH * PER_WORD;  // of a row in one vector of words
        for (int v = 0; v < tile.vectors; v++) {
            for (int64_t column = 0; column < padded; column += 64) {
                int64_t here = attention.head_dim - column < 64 ? attention.head_dim - column : 64;
                for (int lane = 0; lane < WIDTH; lane++) {
                    int64_t pair = first + (v * WIDTH + lane < tile.lanes ? v * WIDTH + lane : tile.lanes - 1);
                    int64_t row = first_row + pair / attention.group, head = kv_head * attention.group + pair % attention.group;
                    copy_bytes(rows + lane * 64, attention.q.template at<T>(row, head) + column, here * sizeof(T));
                    for (int64_t i = here; i < 64; i++) rows[lane * 64 + i] = 0;
                }
                for (int64_t c = 0; c < here; c += ELEMENTS) {
                    Vec block[WIDTH];
                    for (int lane = 0; lane < WIDTH; lane++) block[lane] = words_of(rows + lane * 64 + c);
                    transpose(block);
                    int64_t word = (column + c) / PER_WORD;
                    for (int i = 0; i < WIDTH; i++) store(reinterpret_cast<float*>(to + (word + i) * LANES + v * WIDTH), block[i]);
                }
            }
        }
    }

    static Vec words_of(const float* p) { return load(p); }
    static Vec words_of(const bf16* p) {
        if constexpr (PAIRS) return load(reinterpret_cast<const float*>(p));
        else return load(p);
    }

    void take_keys(int64_t sequence, int64_t first, int count, int64_t kv_head) {
        for (int i = 0; i < count; i++) copy_key(attention.token(attention.k_cache, sequence, first + i, kv_head), keys + i * key_row);
        int whole = (count + FOUR - 1) / FOUR * FOUR;
        for (int64_t at = count * key_row; at < whole * key_row; at++) keys[at] = 0;
    }
    void copy_key(const T* from, Word* to) const {
        if constexpr (PAIRS || sizeof(T) == 4) {
            for (int64_t word = attention.head_dim / PER_WORD; word < key_row; word++) to[word] = 0;
            copy_bytes(to, from, attention.head_dim * sizeof(T));
        } else {
            float* floats = reinterpret_cast<float*>(to);
            for_vectors(attention.head_dim, [&](int64_t k, auto lanes) { store(floats + k, load(from + k, lanes), lanes); });
        }
    }

    // Values as [columns / 4][tokens (or pairs of them)][4]; for tiles as [columns][pairs of tokens].
    void take_values(int64_t sequence, int64_t first, int count, int64_t kv_head) {
        if constexpr (IN_TILES) return take_value_tiles(sequence, first, count, kv_head);
        int64_t step = static_cast<int64_t>(KEYS) / PER_WORD * FOUR;  // from four columns to the next four
        for (int i = 0; i < count; i += PER_WORD) {
            const T* from = attention.token(attention.v_cache, sequence, first + i, kv_head);
            Word* to = values + i / PER_WORD * FOUR;
            if constexpr (PAIRS) {
                const T* next = i + 1 < count ? attention.token(attention.v_cache, sequence, first + i + 1, kv_head) : nullptr;
                copy_value_pair(from, next, to, step);
            } else {
                copy_value(from, to, step);
            }
        }
    }
    // With zeros for columns and tokens that fill up a tile.
    void take_value_tiles(int64_t sequence, int64_t first, int count, int64_t kv_head) {
        constexpr int64_t ROW = KEYS / PER_WORD;
        for (int pair = 0; 2 * pair < count; pair += TILE) {
            const T* tokens[2 * TILE];
            for (int i = 0; i < 2 * TILE; i++) {
                int token = 2 * pair + i;
                tokens[i] = token < count ? attention.token(attention.v_cache, sequence, first + token, kv_head) : nullptr;
            }
            for (int64_t c = 0; c < columns; c += TILE) {
                int width = attention.head_dim - c < TILE ? static_cast<int>(attention.head_dim - c) : TILE;
                Vec block[WIDTH];
                for (int i = 0; i < TILE; i++) block[i] = side_by_side(tokens[2 * i], tokens[2 * i + 1], c, width);
                transpose(block);
                for (int i = 0; i < TILE; i++) store(reinterpret_cast<float*>(values + (c + i) * ROW + pair), block[i]);
            }
        }
    }
    // Columns of two tokens as pairs.
    static Vec side_by_side(const T* one, const T* other, int64_t c, int width) {
#if defined(__AVX512BF16__)
        __mmask16 some = first_lanes(width);
        __m256i low = one ? _mm256_maskz_loadu_epi16(some, one + c) : _mm256_setzero_si256();
        __m256i high = other ? _mm256_maskz_loadu_epi16(some, other + c) : _mm256_setzero_si256();
        __m512i words = _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        return _mm512_castsi512_ps(words);
#else
        (void)one, (void)other, (void)c, (void)width;
        return zero();
#endif
    }
    void copy_value(const T* from, Word* to, int64_t step) const {
        float* floats = reinterpret_cast<float*>(to);
        int64_t c = 0;
        for (; c + FOUR <= attention.head_dim; c += FOUR) {
            for (int i = 0; i < FOUR; i++) floats[c / FOUR * step + i] = to_float(from[c + i]);
        }
        for (; c < columns; c++) floats[c / FOUR * step + c % FOUR] = c < attention.head_dim ? to_float(from[c]) : 0.0f;
    }
    void copy_value_pair(const T* from, const T* next, Word* to, int64_t step) const {
        int64_t c = 0;
#if defined(__AVX512BF16__)
        for (; c + 32 <= attention.head_dim; c += 32) {
            __m512i a = _mm512_loadu_si512(from + c), b = next ? _mm512_loadu_si512(next + c) : _mm512_setzero_si512();
            __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
            Word* place = to + c / FOUR * step;
            put_four<0>(place, step, low, high);
            put_four<1>(place, step, low, high);
            put_four<2>(place, step, low, high);
            put_four<3>(place, step, low, high);
        }
#endif
        for (; c < columns; c++) {
            Word low = c < attention.head_dim ? from[c] : 0, high = c < attention.head_dim && next ? next[c] : 0;
            to[c / FOUR * step + c % FOUR] = low | high << 16;
        }
    }
#if defined(__AVX512BF16__)
    template <int group> static void put_four(Word* to, int64_t step, __m512i low, __m512i high) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * group * step), _mm512_extracti32x4_epi32(low, group));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (2 * group + 1) * step), _mm512_extracti32x4_epi32(high, group));
    }
#endif

    // sum[i][v] += a[i * row + k * step] * b[k][v] over k
    template <int V> static void multiply(Vec (&sum)[FOUR][V], const Word* a, int64_t row, int64_t step, const Word* b, int64_t count) {
        for (int64_t k = 0; k < count; k++) {
            for (int i = 0; i < FOUR; i++)
                for (int v = 0; v < V; v++) sum[i][v] = multiply_add(sum[i][v], b + k * LANES + v * WIDTH, a[i * row + k * step], PAIRS);
        }
    }

    // Scores of `count` keys from position `first` on, and the largest of each lane. On an edge, what a lane does not see is hidden.
    template <int V, bool edge> void make_scores(const Tile& tile, int64_t first, int count, Vec (&most)[V]) {
        const Word* query = queries + tile.index * queries_of_tile();
        if constexpr (IN_TILES) multiply_tiles(keys, key_row, count, query, V, scores, LANES, key_row / TILE, false);
        for (int key = 0; key < count; key += FOUR) {
            Vec sum[FOUR][V];
            for (int i = 0; i < FOUR; i++)
                for (int v = 0; v < V; v++) sum[i][v] = IN_TILES ? load(scores + (key + i) * LANES + v * WIDTH) : zero();
            if constexpr (!IN_TILES) multiply<V>(sum, keys + key * key_row, key_row, 1, query, depth);
            for (int i = 0; i < FOUR; i++) {
                Vec place = all(static_cast<float>(first + key + i));
                for (int v = 0; v < V; v++) {
                    Vec score = attention.score(sum[i][v]);
                    if (edge) score = seen(load(position + tile.index * LANES + v * WIDTH), place, score);
                    most[v] = vmax(most[v], score);
                    store(scores + (key + i) * LANES + v * WIDTH, score);
                }
            }
        }
    }
    // The scores of those queries, by position, that see the key at `place`.
    Vec seen(Vec own, Vec place, Vec score) const {
        Vec hidden = all(-__builtin_inff());
        score = where_less(own, place, hidden, score);
        if (!attention.window) return score;
        return where_less(own - all(static_cast<float>(attention.window)), place, score, hidden);
    }

    // e^(score - largest) as words of weights; the lanes' totals grow.
    template <int V> void make_weights(const Tile& tile, int count, const Vec (&most)[V]) {
        for (int v = 0; v < V; v++) {
            Vec sum = zero();
            float* totals = total + tile.index * LANES + v * WIDTH;
            for (int key = 0; key < count; key += PER_WORD) {
                const float* from = scores + key * LANES + v * WIDTH;
                Word* to = weights + key / PER_WORD * LANES + v * WIDTH;
                Vec first = exponential(load(from) - most[v]);
                if constexpr (PAIRS) {
                    Vec second = exponential(load(from + LANES) - most[v]);
                    sum = sum + (first + second);
                    store_pairs(to, first, second);
                } else {
                    sum = sum + first;
                    store(reinterpret_cast<float*>(to), first);
                }
            }
            store(totals, load(totals) + sum);
        }
    }
    static void store_pairs(Word* to, Vec first, Vec second) {
#if defined(__AVX512BF16__)
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first));
        __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
        _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
#else
        (void)to, (void)first, (void)second;
#endif
    }

    template <int V, bool edge> void add_block(const Tile& tile, int64_t first, int count) {
        float *largest_here = largest + tile.index * LANES, *totals = total + tile.index * LANES;
        Vec most[V], factor[V];
        for (int v = 0; v < V; v++) most[v] = load(largest_here + v * WIDTH);
        make_scores<V, edge>(tile, first, count, most);
        for (int v = 0; v < V; v++) {
            Vec before = load(largest_here + v * WIDTH);
            if (IN_TILES && ::largest(most[v] - before) <= SLACK) most[v] = before;
            factor[v] = exponential(before - most[v]);
            store(largest_here + v * WIDTH, most[v]);
            store(totals + v * WIDTH, load(totals + v * WIDTH) * factor[v]);
            if (IN_TILES && ::largest(most[v] - before) > 0) scale_sums(tile, v, factor[v]);
        }
        constexpr int STEP = IN_TILES ? TILE * PER_WORD : FOUR;
        int whole = (count + STEP - 1) / STEP * STEP;
        for (int key = count; key < whole; key++)
            for (int v = 0; v < V; v++) store(scores + key * LANES + v * WIDTH, all(-__builtin_inff()));
        make_weights<V>(tile, IN_TILES ? whole : (count + PER_WORD - 1) / PER_WORD * PER_WORD, most);
        float* sum_here = sums + tile.index * columns * LANES;
        if constexpr (IN_TILES) {
            multiply_tiles(values, KEYS / PER_WORD, columns, weights, V, sum_here, LANES, whole / STEP, true);
            return;
        }
        for (int64_t c = 0; c < columns; c += FOUR) {
            Vec sum[FOUR][V];
            for (int i = 0; i < FOUR; i++)
                for (int v = 0; v < V; v++) sum[i][v] = load(sum_here + (c + i) * LANES + v * WIDTH) * factor[v];
            multiply<V>(sum, values + c * (KEYS / PER_WORD), 1, FOUR, weights, (count + PER_WORD - 1) / PER_WORD);
            for (int i = 0; i < FOUR; i++)
                for (int v = 0; v < V; v++) store(sum_here + (c + i) * LANES + v * WIDTH, sum[i][v]);
        }
    }
    void scale_sums(const Tile& tile, int v, Vec factor) {
        float* sum_here = sums + tile.index * columns * LANES + v * WIDTH;
        for (int64_t c = 0; c < columns; c++) store(sum_here + c * LANES, load(sum_here + c * LANES) * factor);
    }

    template <int V> void start(const Tile& tile, int64_t first_position, int64_t first) {
        for (int lane = 0; lane < V * WIDTH; lane++) {
            int64_t pair = first + (lane < tile.lanes ? lane : tile.lanes - 1);
            position[tile.index * LANES + lane] = static_cast<float>(first_position + pair / attention.group);
            largest[tile.index * LANES + lane] = NO_SCORE;
            total[tile.index * LANES + lane] = 0;
        }
        for (int64_t c = 0; c < columns; c++)
            for (int v = 0; v < V; v++) store(sums + (tile.index * columns + c) * LANES + v * WIDTH, zero());
    }

    // Divides by the totals and transposes back into rows.
    void write(const Tile& tile, int64_t first_row, int64_t first, int64_t kv_head) {
        const float* sum_here = sums + tile.index * columns * LANES;
        alignas(64) float share[LANES];
        for (int lane = 0; lane < tile.lanes; lane++) {
            int64_t head = kv_head * attention.group + (first + lane) % attention.group;
            int at = tile.index * LANES + lane;
            share[lane] = share_of(attention, head, {largest[at], total[at]});
        }
        for (int v = 0; v < tile.vectors; v++) {
            int lanes = tile.lanes - v * WIDTH < WIDTH ? tile.lanes - v * WIDTH : WIDTH;
            for (int64_t c = 0; c < attention.head_dim; c += WIDTH) {
                int width = attention.head_dim - c < WIDTH ? static_cast<int>(attention.head_dim - c) : WIDTH;
                Vec block[WIDTH];
                for (int i = 0; i < WIDTH; i++) block[i] = i < width ? load(sum_here + (c + i) * LANES + v * WIDTH) : zero();
                transpose(block);
                for (int lane = 0; lane < lanes; lane++) {
                    int64_t pair = first + v * WIDTH + lane;
                    T* out = attention.out.template at<T>(first_row + pair / attention.group, kv_head * attention.group + pair % attention.group);
                    Vec result = block[lane] * all(share[v * WIDTH + lane]);
                    width == WIDTH ? store(out + c, result) : store_some(out + c, result, width);
                }
            }
        }
    }

    template <class Body> static void for_vectors_of(int vectors, Body body) {
        switch (vectors) {
            case 1: return body(Count<1>{});
            case 2: return body(Count<2>{});
            case 3: if constexpr (VECTORS > 2) return body(Count<3>{}); else return;
            case 4: if constexpr (VECTORS > 2) return body(Count<4>{}); else return;
        }
    }

    // Set `set` of a sequence's rows x group pairs, for one kv head.
    void run(int64_t sequence, int64_t kv_head, int64_t set) {
        [[maybe_unused]] WholeTiles registers;
        int64_t first_row = attention.starts[sequence], rows = attention.starts[sequence + 1] - first_row;
        int64_t before = attention.lengths[sequence] - rows, pairs = rows * attention.group;
        int64_t from = set * tiles * LANES, to = from + tiles * LANES < pairs ? from + tiles * LANES : pairs;
        Tile here[SET_LANES / LANES];
        int count = 0;
        for (int64_t first = from; first < to; first += LANES, count++) {
            int lanes = static_cast<int>(to - first < LANES ? to - first : LANES);
            here[count] = {count, lanes, (lanes + WIDTH - 1) / WIDTH, before + first / attention.group,
                           before + (first + lanes - 1) / attention.group};
            take_queries(here[count], first_row, first, kv_head);
            for_vectors_of(here[count].vectors, [&](auto v) { start<v.value>(here[count], before, first); });
        }
        int64_t end = here[count - 1].last_position + 1;
        for (int64_t key = attention.first_visible(here[0].first_position); key < end; key += KEYS) {
            int keys_here = static_cast<int>(end - key < KEYS ? end - key : KEYS);
            take_keys(sequence, key, keys_here, kv_head);
            take_values(sequence, key, keys_here, kv_head);
            for (int t = 0; t < count; t++) {
                const Tile& tile = here[t];
                int64_t stop = key + keys_here;
                if (key > tile.last_position || stop <= attention.first_visible(tile.first_position)) continue;
                if (stop > tile.last_position + 1) stop = tile.last_position + 1;
                int seen = static_cast<int>(stop - key);
                bool edge = stop - 1 > tile.first_position || key < attention.first_visible(tile.last_position) || seen % FOUR;
                for_vectors_of(tile.vectors, [&](auto v) {
                    edge ? add_block<v.value, true>(tile, key, seen) : add_block<v.value, false>(tile, key, seen);
                });
            }
        }
        for (int t = 0; t < count; t++) write(here[t], first_row, from + t * LANES, kv_head);
    }
};
