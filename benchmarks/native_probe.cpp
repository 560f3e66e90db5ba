// What this machine's memory and arithmetic can do at best: the roofline that kernels are measured against.
#include <immintrin.h>
#include "tiles.h"

// Each thread reads its share of the bytes once.
CHECK(read_probe) { return call.inputs == 1 && call.outputs == 0 ? nullptr : "(bytes)"; }
KERNEL(read_probe, "") {
    const Tensor& bytes = call.input(0);
    int64_t first, last;
    team.share(bytes.shape[0], 4096, first, last);
    const char *at = bytes.at<char>(first), *end = bytes.at<char>(last);
    __m256i sum[8] = {};
    for (; at + 256 <= end; at += 256) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] = _mm256_xor_si256(sum[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at) + i));
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) __asm__ volatile("" : : "x"(sum[i]));
}

#if defined(__AVX512F__)
#define REGISTERS "%%zmm"
constexpr int LANES = 16;
#else
#define REGISTERS "%%ymm"
constexpr int LANES = 8;
#endif
// Twelve independent chains hide the latency.
#define CHAIN(INSTRUCTION, N) INSTRUCTION " " REGISTERS "14, " REGISTERS "15, " REGISTERS #N "\n"
#define CHAINS(INSTRUCTION)                                                                                                   \
    __asm__ volatile(CHAIN(INSTRUCTION, 0) CHAIN(INSTRUCTION, 1) CHAIN(INSTRUCTION, 2) CHAIN(INSTRUCTION, 3)                  \
                     CHAIN(INSTRUCTION, 4) CHAIN(INSTRUCTION, 5) CHAIN(INSTRUCTION, 6) CHAIN(INSTRUCTION, 7)                  \
                     CHAIN(INSTRUCTION, 8) CHAIN(INSTRUCTION, 9) CHAIN(INSTRUCTION, 10) CHAIN(INSTRUCTION, 11)                \
                     : : : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11")

#if defined(__AMX_BF16__)
// Four sums at a time, as products have them; gives back the multiplications.
static int64_t multiply_tiles_in_registers(int64_t repeats) {
    TileRegisters registers;
    registers.shape(BLOCK_ROWS, TILE);
    for (int64_t i = 0; i < repeats; i++) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    return repeats * 4 * TILE * TILE * TILE_STEP;
}
#endif

// Each thread multiplies and adds in registers, `repeats` times twelve instructions (a tenth as often, four of tiles); gives back the
// multiplications of one thread.
CHECK(multiply_probe) {
    return call.inputs == 0 && call.outputs == 1 && call.output(0).type == I64 ? nullptr : "() -> multiplications[1] int64";
}
KERNEL(multiply_probe, "type:choice(f32,bf16,int8,tiles) repeats:integer") {
    int64_t repeats = call.integer(1), products = LANES;
    int type = static_cast<int>(call.integer(0));
#if defined(__AMX_BF16__)
    if (type == 3) {
        int64_t done = multiply_tiles_in_registers(repeats / 10);
        if (team.index == 0) *call.output(0).at<int64_t>() = done;
        return;
    }
#endif
    for (int64_t i = 0; i < repeats; i++) {
#if defined(__AVX512BF16__)
        if (type == 1) {
            CHAINS("vdpbf16ps");
            products = 2 * LANES;
            continue;
        }
#endif
#if defined(__AVX512VNNI__)
        if (type == 2) {
            CHAINS("vpdpbusd");
            products = 4 * LANES;
            continue;
        }
#endif
        (void)type;
        CHAINS("vfmadd231ps");
    }
    if (team.index == 0) *call.output(0).at<int64_t>() = repeats * 12 * products;
}
