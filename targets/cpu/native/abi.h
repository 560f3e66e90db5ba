// What the runtime hands to a kernel. The library needs nothing but the instruction set: no libc, no libstdc++, no allocation.
//
// A kernel is one KERNEL(name, attributes) { ... } in one file. All threads of the team run it at once; it shares its work out
// with team.next() and may meet with team.barrier(). The driver puts a barrier after every kernel.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Type : int32_t { F32, BF16, F16, I32, I64, U8, I8, Q8_0, Q4_0, Q4_1, Q4_K };
enum Layout : int32_t { ROW_MAJOR, PANEL };

// `shape` and `strides` (in elements) of up to 4 dimensions. `symbol` names the row count that shape[0] follows at each step
// (0: none). Of a PANEL weight (panel.h) shape is the logical [N, K] or [E, N, K]; strides mean nothing.
struct Tensor {
    void* data;
    int64_t shape[4];
    int64_t strides[4];
    Type type;
    int32_t rank;
    int32_t symbol;
    Layout layout;

    template <class T> T* at(int64_t i = 0) const { return static_cast<T*>(data) + i * strides[0]; }
    template <class T> T* at(int64_t i, int64_t j) const { return static_cast<T*>(data) + i * strides[0] + j * strides[1]; }
    template <class T> T* at(int64_t i, int64_t j, int64_t k) const { return at<T>(i, j) + k * strides[2]; }
};

struct Team;
struct Call;
using Run = void (*)(const Call&, Team&);

// `tensors`: inputs, then outputs. `numbers`: attributes in the order that the kernel declares (flags as 0 and 1, choices by index).
struct Call {
    Run run;
    const Tensor* tensors;
    const double* numbers;
    int32_t inputs;
    int32_t outputs;

    const Tensor& input(int i) const { return tensors[i]; }
    const Tensor& output(int i) const { return tensors[inputs + i]; }
    double number(int i) const { return numbers[i]; }
    int64_t integer(int i) const { return static_cast<int64_t>(numbers[i]); }
    bool flag(int i) const { return numbers[i] != 0; }
};

// What the threads share. Each hot word has a cache line to itself.
struct alignas(64) Shared {
    alignas(64) uint32_t arrived;
    alignas(64) uint32_t generation;
    alignas(64) int64_t task;
    alignas(64) uint32_t epoch;
    uint32_t sleepers;
    uint32_t stopping;
    uint32_t spins;
    const Call* calls;
    int64_t count;
    int64_t* ticks;
    char* scratch;
    int64_t scratch_bytes;
    int32_t size;
};

static inline void pause_thread() { __builtin_ia32_pause(); }

static inline long system_call(long number, long a, long b, long c, long d) {
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

static inline void yield_thread() { system_call(24, 0, 0, 0, 0); }

// One thread's view of the team.
struct Team {
    Shared* shared;
    int32_t index;
    int32_t size;

    // The next task nobody has taken yet, from 0 on; starts anew after each barrier.
    int64_t next(int64_t many = 1) { return __atomic_fetch_add(&shared->task, many, __ATOMIC_RELAXED); }

    // All threads have come this far, and see what the others wrote.
    void barrier() {
        if (size == 1) {
            shared->task = 0;
            return;
        }
        uint32_t now = __atomic_load_n(&shared->generation, __ATOMIC_RELAXED);
        if (__atomic_add_fetch(&shared->arrived, 1, __ATOMIC_ACQ_REL) == static_cast<uint32_t>(size)) {
            shared->arrived = 0;
            shared->task = 0;
            __atomic_store_n(&shared->generation, now + 1, __ATOMIC_RELEASE);
            return;
        }
        for (uint32_t turn = 0; __atomic_load_n(&shared->generation, __ATOMIC_ACQUIRE) == now; turn++) {
            if (turn < 4096) pause_thread(); else yield_thread();  // another process has a core of ours: let it finish
        }
    }

    // Scratch shared by the team, valid within one kernel; its size is what the kernel's SCRATCH asked for.
    template <class T> T* scratch(int64_t offset_bytes = 0) const { return reinterpret_cast<T*>(shared->scratch + offset_bytes); }

    // This thread's share [first, last) of n things, in multiples of `grain`.
    void share(int64_t n, int64_t grain, int64_t& first, int64_t& last) const {
        int64_t grains = (n + grain - 1) / grain;
        first = grains * index / size * grain;
        last = grains * (index + 1) / size * grain;
        if (last > n) last = n;
    }
};

// Declares a kernel: its attributes ("eps:number cast:flag activation:choice(silu,gelu) window:integer", with =default where one
// may be absent) and its body, in which `call` and `team` are what they say.
#define KERNEL(NAME, ATTRIBUTES)                                                                     \
    EXPORT const char ts_##NAME##_attributes[] = ATTRIBUTES;                                          \
    static void run_##NAME(const Call& call, Team& team);                                             \
    EXPORT void ts_##NAME(const Call& call, Team& team) { run_##NAME(call, team); }                   \
    static void run_##NAME(const Call& call, Team& team)

// What must hold of a call, checked once before anything runs: gives back null or the sentence that says what is expected.
#define CHECK(NAME) EXPORT const char* ts_##NAME##_check(const Call& call)

// Bytes of shared scratch that a call needs at its largest extent, for `threads` threads; absent means none.
#define SCRATCH(NAME) EXPORT int64_t ts_##NAME##_scratch(const Call& call, int32_t threads)

static inline bool is_float(const Tensor& t) { return t.type == F32 || t.type == BF16; }
static inline bool is_dense(const Tensor& t) {
    int64_t expected = 1;
    for (int i = t.rank - 1; i >= 0; i--) {
        if (i > 0 && t.strides[i] != expected) return false;  // rows may lie apart: windows of merged buffers
        expected *= t.shape[i];
    }
    return t.layout == ROW_MAJOR;
}
