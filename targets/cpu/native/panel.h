// The PANEL layout of a weight [N, K]: what the matrix products stream.
//
// N is cut into panels of 32 output columns; the last one is filled up with zeros. A panel is one contiguous stream in the order in
// which a product reads it, a multiple of 64 bytes long; panels follow each other, and of [E, N, K] the E weights follow each other.
//
//   F32    [K][32] floats
//   BF16   [ceil(K / 2)][32][2]: pairs along K, as vdpbf16ps takes them; an odd K is filled up with zeros
//
// The others need K to be a multiple of 32. For every 32 of K (a group, which shares a scale, as ggml's blocks do):
//
//   Q8_0    32 f16 scales d; [8][32][4] bytes, fours along K as vpdpbusd takes them, each byte q + 128     value d q
//   Q4_0    32 f16 scales d; [4][32][4] bytes: nibbles q + 8                                              value d q
//   Q4_1    32 f16 scales d; 32 f16 minimums m; [4][32][4] bytes: nibbles q                               value d q + m
//
// Byte b of four j of a nibble format holds k = 4 j + b in its low half and k = 16 + 4 j + b in its high half, as in ggml's blocks: one
// load gives two fours. With N a multiple of 32 a weight has as many bytes as ggml's own format has.
#pragma once
#include "abi.h"

constexpr int COLUMNS = 32;  // of a panel
constexpr int GROUP = 32;    // of K under one scale

constexpr int Q8_0_GROUP_BYTES = COLUMNS * (2 + 32), Q4_0_GROUP_BYTES = COLUMNS * (2 + 16), Q4_1_GROUP_BYTES = COLUMNS * (2 + 2 + 16);

static inline bool is_quantised(Type type) { return type == Q8_0 || type == Q4_0 || type == Q4_1; }
static inline bool has_panel(Type type) { return type == F32 || type == BF16 || is_quantised(type); }

// Bytes of one panel of a weight with K columns.
static inline int64_t panel_bytes(Type type, int64_t K) {
    switch (type) {
        case F32: return K * COLUMNS * 4;
        case BF16: return (K + 1) / 2 * COLUMNS * 4;
        case Q8_0: return K / GROUP * Q8_0_GROUP_BYTES;
        case Q4_0: return K / GROUP * Q4_0_GROUP_BYTES;
        case Q4_1: return K / GROUP * Q4_1_GROUP_BYTES;
        default: return 0;
    }
}
static inline int64_t panel_count(int64_t N) { return (N + COLUMNS - 1) / COLUMNS; }
static inline int64_t packed_bytes(Type type, int64_t N, int64_t K) { return panel_count(N) * panel_bytes(type, K); }
