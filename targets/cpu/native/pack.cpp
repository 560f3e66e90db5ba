// Row-major weights into the PANEL layout (panel.h), rounding or quantising on the way. One task is one panel.
#include "blocks.h"
#include "interleave.h"
#include "panel.h"

static constexpr int CHUNK = 64;  // of K at a time
alignas(64) static const char ZEROS[CHUNK * 4] = {};

// 32 rows of the source, the first `count` of them there.
struct Source {
    const char* data;
    int64_t stride_bytes;
    int count;

    // Row r from `offset` bytes on; a row of zeros past the last.
    template <class T> const T* at(int r, int64_t offset) const {
        return reinterpret_cast<const T*>(r < count ? data + r * stride_bytes + offset : ZEROS);
    }
};

// Asks for what lies `AHEAD` bytes on in every row: 32 rows are more streams than the processor follows by itself.
static constexpr int64_t AHEAD = 512;
static inline void fetch_ahead(const Source& source, int64_t offset, int64_t bytes) {
    for (int r = 0; r < source.count; r++) {
        const char* at = source.data + r * source.stride_bytes + offset + AHEAD;
        for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch(at + i, _MM_HINT_T1);
    }
}

template <class From, class As> static void pack_as(const Source& source, int64_t K, uint32_t* to) {
    constexpr int64_t stride = sizeof(As) / sizeof(From);  // elements of the source in a word of the panel
    for (int64_t k = 0; k < K; k += CHUNK) {
        int64_t n = (K - k < CHUNK ? K - k : CHUNK) / stride;
        const As* rows[COLUMNS];
        fetch_ahead(source, k * static_cast<int64_t>(sizeof(From)), CHUNK * sizeof(From));
        for (int r = 0; r < COLUMNS; r++) rows[r] = source.at<As>(r, k * static_cast<int64_t>(sizeof(From)));
        interleave(rows, COLUMNS, n, to + k / stride * COLUMNS);
    }
}

static void last_of_odd(const Source& source, int64_t K, uint32_t* to) {
    for (int r = 0; r < COLUMNS; r++) to[K / 2 * COLUMNS + r] = *source.at<bf16>(r, (K - 1) * 2);
}

static void narrow_and_pack(const Source& source, int64_t K, uint32_t* to) {
    alignas(64) bf16 values[COLUMNS][CHUNK];
    const Word* rows[COLUMNS];
    for (int r = 0; r < COLUMNS; r++) rows[r] = reinterpret_cast<const Word*>(values[r]);
    for (int64_t k = 0; k < K; k += CHUNK) {
        int n = static_cast<int>(K - k < CHUNK ? K - k : CHUNK);
        fetch_ahead(source, k * 4, CHUNK * 4);
        for (int r = 0; r < COLUMNS; r++) {
            const float* from = source.at<float>(r, k * 4);
            for (int i = 0; i < n; i += WIDTH) {
                if (n - i >= WIDTH) store(values[r] + i, load(from + i));
                else store(values[r] + i, load_some(from + i, n - i));
            }
            if (n % 2) values[r][n] = 0;
        }
        interleave(rows, COLUMNS, (n + 1) / 2, to + k / 2 * COLUMNS);
    }
}

static void pack_floats(const Source& source, Type from, Type type, int64_t K, char* to) {
    uint32_t* words = reinterpret_cast<uint32_t*>(to);
    if (type == F32) {
        if (from == F32) pack_as<float, float>(source, K, words); else pack_as<bf16, bf16>(source, K, words);
    } else if (from == F32) {
        narrow_and_pack(source, K, words);
    } else {
        pack_as<bf16, Word>(source, K, words);
        if (K % 2) last_of_odd(source, K, words);
    }
}

// Blocks of 32 columns of K of one format, one of each row, to a group of a panel.
template <class Block> static void pack_group(const Block* const* blocks, char* to) {
    uint16_t* scales = reinterpret_cast<uint16_t*>(to);
    const Word* words[COLUMNS];
    for (int r = 0; r < COLUMNS; r++) {
        scales[r] = blocks[r]->scale;
        if constexpr (Block::TYPE == Q4_1) scales[COLUMNS + r] = blocks[r]->minimum;
        words[r] = reinterpret_cast<const Word*>(blocks[r]->quants);
    }
    constexpr int64_t head = Block::TYPE == Q4_1 ? 4 * COLUMNS : 2 * COLUMNS;
    uint32_t* quants = reinterpret_cast<uint32_t*>(to + head);
    interleave(words, COLUMNS, sizeof(Block::quants) / 4, quants);
    if constexpr (Block::TYPE == Q8_0) {
        for (int i = 0; i < 8 * COLUMNS; i++) quants[i] ^= 0x80808080;
    }
}

// `fill(row, group, block)` gives the block of a row where the source, of `bytes` a group, has no such blocks itself.
template <class Block, class Fill> static void pack_filled(const Source& source, int64_t K, int64_t bytes, char* to, Fill fill) {
    Block made[COLUMNS];
    const Block* blocks[COLUMNS];
    for (int r = 0; r < COLUMNS; r++) blocks[r] = &made[r];
    for (int r = source.count; r < COLUMNS; r++) made[r] = Block{};
    for (int64_t g = 0; g < K / GROUP; g++, to += COLUMNS * sizeof(Block)) {
        fetch_ahead(source, g * bytes, bytes);
        for (int r = 0; r < source.count; r++) fill(r, g, made[r]);
        pack_group(blocks, to);
    }
}

template <class Block> static void pack_quantising(const Source& source, Type from, int64_t K, char* to) {
    pack_filled<Block>(source, K, GROUP * (from == F32 ? 4 : 2), to, [&](int r, int64_t g, Block& block) {
        Values values;
        if (from == F32) values.load_from(source.at<float>(r, g * GROUP * 4)); else values.load_from(source.at<bf16>(r, g * GROUP * 2));
        quantise(values, block);
    });
}

template <class Block> static void pack_blocks(const Source& source, int64_t K, char* to) {
    const Block* blocks[COLUMNS];
    Block none{};
    for (int64_t g = 0; g < K / GROUP; g++, to += COLUMNS * sizeof(Block)) {
        fetch_ahead(source, g * static_cast<int64_t>(sizeof(Block)), sizeof(Block));
        for (int r = 0; r < COLUMNS; r++) {
            blocks[r] = r < source.count ? source.at<Block>(r, g * static_cast<int64_t>(sizeof(Block))) : &none;
        }
        pack_group(blocks, to);
    }
}

static void pack_super_blocks(const Source& source, int64_t K, char* to) {
    pack_filled<BlockQ4_1>(source, K, sizeof(BlockQ4_K) / 8, to, [&](int r, int64_t g, BlockQ4_1& block) {
        split(*source.at<BlockQ4_K>(r, g / 8 * static_cast<int64_t>(sizeof(BlockQ4_K))), static_cast<int>(g % 8), block);
    });
}

template <class Block> static void pack_quantised(const Source& source, Type from, int64_t K, char* to) {
    if (from == Block::TYPE) pack_blocks<Block>(source, K, to);
    else if (from == Q4_K) pack_super_blocks(source, K, to);
    else pack_quantising<Block>(source, from, K, to);
}

static int64_t row_bytes(Type type, int64_t stride, int64_t K) {
    switch (type) {
        case F32: return stride * 4;
        case BF16: return stride * 2;
        case Q8_0: return K / GROUP * static_cast<int64_t>(sizeof(BlockQ8_0));
        case Q4_0: return K / GROUP * static_cast<int64_t>(sizeof(BlockQ4_0));
        case Q4_1: return K / GROUP * static_cast<int64_t>(sizeof(BlockQ4_1));
        default: return K / 256 * static_cast<int64_t>(sizeof(BlockQ4_K));
    }
}

// source[N, K] or [E, N, K], row-major, float32, bfloat16 or ggml blocks -> the same weight in the PANEL layout.
KERNEL(pack_panel, "") {
    const Tensor &source = call.input(0), &out = call.output(0);
    int64_t experts = out.rank == 3 ? out.shape[0] : 1, N = out.shape[out.rank - 2], K = out.shape[out.rank - 1];
    int64_t panels = panel_count(N), bytes = panel_bytes(out.type, K);
    int64_t row = row_bytes(source.type, source.strides[source.rank - 2], K);
    int64_t whole = is_float(source) && out.rank == 3 ? row_bytes(source.type, source.strides[0], K) : N * row;
    for (int64_t task; (task = team.next()) < experts * panels;) {
        int64_t expert = task / panels, first = task % panels * COLUMNS;
        int count = static_cast<int>(N - first < COLUMNS ? N - first : COLUMNS);
        Source from{source.at<char>() + expert * whole + first * row, row, count};
        char* to = out.at<char>() + task * bytes;
        switch (out.type) {
            case Q8_0: pack_quantised<BlockQ8_0>(from, source.type, K, to); break;
            case Q4_0: pack_quantised<BlockQ4_0>(from, source.type, K, to); break;
            case Q4_1: pack_quantised<BlockQ4_1>(from, source.type, K, to); break;
            default: pack_floats(from, source.type, out.type, K, to);
        }
    }
}

CHECK(pack_panel) {
    if (call.inputs != 1 || call.outputs != 1) return "(source) -> weight";
    const Tensor &source = call.input(0), &out = call.output(0);
    if (source.layout != ROW_MAJOR || out.layout != PANEL || !has_panel(out.type))
        return "a row-major source and a weight in the panel layout, of type F32, BF16, Q8_0, Q4_0 or Q4_1";
    if (source.rank != out.rank || (out.rank != 2 && out.rank != 3)) return "source and weight of one shape, [N, K] or [E, N, K]";
    for (int i = 0; i < out.rank; i++)
        if (source.shape[i] != out.shape[i]) return "source and weight of one shape, [N, K] or [E, N, K]";
    if (is_float(source)) {
        if (source.strides[source.rank - 1] != 1) return "a source with the elements of a row side by side";
    } else if (source.type != out.type && !(source.type == Q4_K && out.type == Q4_1)) {
        return "a source of float32, bfloat16, or blocks of the weight's own type (Q4_K of a Q4_1 weight)";
    }
    if (is_quantised(out.type) && out.shape[out.rank - 1] % (source.type == Q4_K ? 256 : GROUP)) return "K of whole blocks";
    if (!is_float(source) && !is_quantised(out.type)) return "a float source of a float weight";
    return nullptr;
}
