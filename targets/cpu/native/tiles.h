// Matrix tiles (AMX): activations in bfloat16 times 32 columns of a panel, 32 rows at a time.
//
// Eight registers of 16 rows of 64 bytes: four sums of 16 x 16, two tiles of activations (16 rows x 32 of K), two of the panel (16 pairs
// along K x 16 columns), which lie in a BF16 panel as they are taken. Tiles of fewer rows leave the others' bits as they are, so that a
// row's sum does not depend on how many there are.
#pragma once
#include "unpack.h"

#if defined(__AMX_BF16__)

constexpr int TILE = 16, TILE_STEP = 32;              // rows of a tile; of K in a step
constexpr int TILE_LINE = 64;                         // bytes of a row of a tile
constexpr int BLOCK_ROWS = 2 * TILE;                  // of activations
constexpr int64_t PANEL_STEP = TILE * COLUMNS * 4;    // bytes of a BF16 panel in a step
constexpr int64_t TILE_STRETCH = 8;                   // steps of a panel that pass all rows before the next: a third of the first-level cache

// The registers' shapes, held from the first to the end of the object's life; a change sets all registers to zero.
class TileRegisters {
    int rows = 0, pairs = 0;

   public:
    TileRegisters() = default;
    TileRegisters(const TileRegisters&) = delete;
    ~TileRegisters() { if (rows) _tile_release(); }

    // Up to 32 rows of activations, up to 16 pairs along K.
    void shape(int new_rows, int new_pairs) {
        if (new_rows == rows && new_pairs == pairs) return;
        rows = new_rows, pairs = new_pairs;
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t line[16] = {};
            uint8_t rows[16] = {};
        } shapes;
        auto set = [&](int tile, int height, int line) { shapes.rows[tile] = static_cast<uint8_t>(height), shapes.line[tile] = static_cast<uint16_t>(line); };
        int upper = rows < TILE ? rows : TILE, lower = rows - upper;
        for (int tile = 0; tile < 2; tile++) {
            set(tile, upper, TILE_LINE);
            if (lower) set(2 + tile, lower, TILE_LINE);
            set(6 + tile, pairs, TILE_LINE);
        }
        set(4, upper, pairs * 4);
        if (lower) set(5, lower, pairs * 4);
        __asm__ volatile("" : : "r"(&shapes) : "memory");
        _tile_loadconfig(&shapes);
    }
};

// Rows [first, first + count) as tiles: [steps][count][32], the last step filled up with zeros.
static void arrange_tiles(const Rows& rows, int64_t first, int count, int64_t K, char* to) {
    constexpr int64_t TOGETHER = 4;  // lines of a row that are read one after the other
    const int64_t whole = K / TILE_STEP, step = static_cast<int64_t>(count) * TILE_LINE;
    for (int64_t s = 0; s < whole; s += TOGETHER) {
        int64_t until = whole - s < TOGETHER ? whole : s + TOGETHER;
        for (int r = 0; r < count; r++) {
            const char* from = rows.at<char>(first + r);
            for (int64_t at = s; at < until; at++) _mm512_storeu_si512(to + at * step + r * TILE_LINE, _mm512_loadu_si512(from + at * TILE_LINE));
        }
    }
    if (K % TILE_STEP == 0) return;
    const __mmask32 some = (1u << K % TILE_STEP) - 1;
    for (int r = 0; r < count; r++) {
        const char* from = rows.at<char>(first + r) + whole * TILE_LINE;
        _mm512_storeu_si512(to + whole * step + r * TILE_LINE, _mm512_maskz_loadu_epi16(some, from));
    }
}

// sums[0 .. 32 or 16][32] (+)= rows times panel over `steps` steps. LOWER: there are more than 16 rows.
template <bool LOWER>
[[gnu::noinline]] static void multiply_tiles(const char* x, int64_t step, const char* panel, int64_t steps, float* out, bool fresh, Ahead ahead) {
    constexpr int64_t LINES = COLUMNS * 4;
    float* lower = out + TILE * COLUMNS;
    __asm__ volatile("" : : : "memory");  // what was arranged is in memory now
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (LOWER) _tile_zero(2);
        if constexpr (LOWER) _tile_zero(3);
    } else {
        _tile_loadd(0, out, LINES);
        _tile_loadd(1, out + TILE, LINES);
        if constexpr (LOWER) _tile_loadd(2, lower, LINES);
        if constexpr (LOWER) _tile_loadd(3, lower + TILE, LINES);
    }
    for (int64_t s = 0; s < steps; s++, x += step, panel += PANEL_STEP) {
        _tile_loadd(6, panel, LINES);
        _tile_loadd(4, x, TILE_LINE);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + TILE_LINE, LINES);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (LOWER) {
            _tile_loadd(5, x + TILE * TILE_LINE, TILE_LINE);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        for (int64_t line = 0; line < ahead.lines; line++) fetch_line(ahead.at + line * LINE);
        ahead.at += ahead.lines * LINE;
    }
    _tile_stored(0, out, LINES);
    _tile_stored(1, out + TILE, LINES);
    if constexpr (LOWER) _tile_stored(2, lower, LINES);
    if constexpr (LOWER) _tile_stored(3, lower + TILE, LINES);
}

static inline int rows_of_tiles(int64_t rows, int64_t block) {
    int64_t rest = rows - block * BLOCK_ROWS;
    return rest < BLOCK_ROWS ? static_cast<int>(rest) : BLOCK_ROWS;
}

// out[rows][32] = arranged rows times a panel of a weight type.
static void multiply_panel_by_tiles(Type weight, int64_t rows, int64_t K, const char* memory, const char* panel, float* out) {
    alignas(64) char unpacked[TILE_STRETCH * PANEL_STEP];
    TileRegisters registers;
    const int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS, steps = (K + TILE_STEP - 1) / TILE_STEP, whole = K / TILE_STEP;
    const int64_t step_bytes = is_quantised(weight) ? group_bytes(weight) : PANEL_STEP;
    const int64_t stretch = blocks == 1 && weight == BF16 ? steps : TILE_STRETCH;
    for (int64_t at = 0; at < steps;) {
        int64_t some = at == whole ? 1 : whole - at < stretch ? whole - at : stretch;
        int pairs = at == whole ? static_cast<int>(K % TILE_STEP + 1) / 2 : TILE;
        const char *from = panel + at * step_bytes, *next = from + some * step_bytes;
        if (is_quantised(weight)) unpack_groups(weight, from, some, unpacked);
        for (int64_t b = 0; b < blocks; b++) {
            int count = rows_of_tiles(rows, b);
            const char* x = memory + b * steps * BLOCK_ROWS * TILE_LINE + at * count * TILE_LINE;
            // One block looks a little ahead; of many, the first two fetch a half of the next stretch each.
            int64_t lines = step_bytes / LINE, half = (lines + 1) / 2;
            Ahead ahead{is_quantised(weight) ? next : from + AHEAD_BYTES, lines};
            if (blocks > 1) ahead = b < 2 ? Ahead{next + b * half * LINE * some, half} : Ahead{nullptr, 0};
            registers.shape(count, pairs);
            const auto multiply = count > TILE ? multiply_tiles<true> : multiply_tiles<false>;
            multiply(x, static_cast<int64_t>(count) * TILE_LINE, is_quantised(weight) ? unpacked : from, some, out + b * BLOCK_ROWS * COLUMNS, at == 0, ahead);
        }
        at += some;
    }
}
#endif
