// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), the same numbers as runtime/functions/philox.py.
#pragma once
#include <stdint.h>

// A number in [0, 1) with 53 random bits for a seed (the key) and an output position (the counter).
static inline double uniform(int64_t seed, int32_t position) {
    uint32_t counter[4] = {static_cast<uint32_t>(position), 0, 0, 0};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)};
    for (int round = 0; round < 10; round++) {
        uint64_t a = uint64_t{0xD2511F53} * counter[0], b = uint64_t{0xCD9E8D57} * counter[2];
        uint32_t next0 = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0];
        uint32_t next2 = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1];
        counter[0] = next0, counter[1] = static_cast<uint32_t>(b), counter[2] = next2, counter[3] = static_cast<uint32_t>(a);
        key[0] += 0x9E3779B9, key[1] += 0xBB67AE85;
    }
    uint64_t bits = (uint64_t{counter[0]} << 32 | counter[1]) >> 11;
    return static_cast<double>(bits) * 0x1p-53;
}
