// Runs a list of calls on a team of threads. The threads are the runtime's: each enters `ts_work` once and stays.
#include "abi.h"

static constexpr long FUTEX = 202, WAIT_PRIVATE = 128, WAKE_PRIVATE = 129;

EXPORT const int32_t ts_abi_version = 1;
EXPORT const int64_t ts_shared_bytes = sizeof(Shared);
EXPORT const int64_t ts_tensor_bytes = sizeof(Tensor);
EXPORT const int64_t ts_call_bytes = sizeof(Call);

static inline uint64_t ticks() { return __builtin_ia32_rdtsc(); }

static void execute(Shared* shared, int32_t index) {
    Team team{shared, index, shared->size};
    const Call* calls = shared->calls;
    const int64_t count = shared->count;  // read once: after the last barrier the next list may be there already
    int64_t* times = index == 0 ? shared->ticks : nullptr;
    for (int64_t at = 0; at < count; at++) {
        uint64_t start = times ? ticks() : 0;
        calls[at].run(calls[at], team);
        team.barrier();
        if (times) times[at] += static_cast<int64_t>(ticks() - start);
    }
}

#if defined(__AMX_TILE__)
// Linux lends a process the state of the tile registers only when asked: 0, or the error's number, negative. Before threads work.
EXPORT int64_t ts_request_tiles() {
    constexpr long ARCH_PRCTL = 158, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    return system_call(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA, 0, 0);
}
#endif

// `memory` is ts_shared_bytes of zeroed memory, aligned to 64 bytes. `spins` is how long an idle thread waits before it sleeps.
EXPORT void ts_open(Shared* shared, int32_t size, char* scratch, int64_t scratch_bytes, uint32_t spins) {
    shared->size = size;
    shared->scratch = scratch;
    shared->scratch_bytes = scratch_bytes;
    shared->spins = spins;
}

EXPORT void ts_set_scratch(Shared* shared, char* scratch, int64_t bytes) {
    shared->scratch = scratch;
    shared->scratch_bytes = bytes;
}

// The life of thread `index` (1 and up): returns when the team is closed.
EXPORT void ts_work(Shared* shared, int32_t index) {
    uint32_t seen = 0;
    for (;;) {
        uint32_t turn = 0;
        while (__atomic_load_n(&shared->epoch, __ATOMIC_ACQUIRE) == seen) {
            if (turn++ < shared->spins) {
                pause_thread();
                continue;
            }
            __atomic_fetch_add(&shared->sleepers, 1, __ATOMIC_SEQ_CST);
            system_call(FUTEX, reinterpret_cast<long>(&shared->epoch), WAIT_PRIVATE, seen, 0);
            __atomic_fetch_sub(&shared->sleepers, 1, __ATOMIC_SEQ_CST);
        }
        seen++;
        if (shared->stopping) return;
        execute(shared, index);
    }
}

static void wake(Shared* shared) {
    __atomic_fetch_add(&shared->epoch, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&shared->sleepers, __ATOMIC_SEQ_CST)) {
        system_call(FUTEX, reinterpret_cast<long>(&shared->epoch), WAKE_PRIVATE, 1 << 30, 0);
    }
}

// Runs `count` calls; the calling thread is thread 0. `ticks` (or null) gets the time-stamp counts of each call added.
EXPORT void ts_run(Shared* shared, const Call* calls, int64_t count, int64_t* ticks) {
    shared->calls = calls;
    shared->count = count;
    shared->ticks = ticks;
    if (shared->size > 1) wake(shared);
    execute(shared, 0);
}

// Makes the tensors that follow a row count follow these.
EXPORT void ts_resize(Tensor* tensors, int64_t count, int64_t rows, int64_t logit_rows) {
    for (int64_t at = 0; at < count; at++) {
        if (tensors[at].symbol) tensors[at].shape[0] = tensors[at].symbol == 1 ? rows : logit_rows;
    }
}

EXPORT void ts_close(Shared* shared) {
    __atomic_store_n(&shared->stopping, 1, __ATOMIC_RELEASE);
    wake(shared);
}

// What the C++ compiler may call although nothing here does.
extern "C" void* memcpy(void* to, const void* from, size_t bytes) {
    void* result = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
    return result;
}
extern "C" void* memmove(void* to, const void* from, size_t bytes) {
    char* target = static_cast<char*>(to);
    const char* source = static_cast<const char*>(from);
    if (target <= source || target >= source + bytes) return memcpy(to, from, bytes);
    while (bytes--) target[bytes] = source[bytes];
    return to;
}
extern "C" void* memset(void* to, int value, size_t bytes) {
    void* result = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
    return result;
}
