/* A driver library of CUDA and HIP in host memory, for tests: validates every call, logs it, runs a few built-in kernels.

   Work is done when it is asked for, except while a stream is captured: then it is kept as the nodes of a graph. A test may have it
   put off, of the first stream, of the others or of all: then it is done when something waits for it. A module's image is its ELF header; any built-in kernel can be found in it. Misuse gives error 1 and leaves its sentence in fake_problem(). */

#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4096, LOG_BYTES = 1 << 20 };
enum { INVALID = 1, OUT_OF_MEMORY = 2, NO_BINARY = 209, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900, ILLEGAL_ADDRESS = 700 };

typedef struct { char *start; size_t bytes; int host; } Allocation;
typedef struct { const char *name; const char *kinds; void (*run)(void **); } Kernel;
typedef struct { int live; uint32_t shared; const Kernel *kernel; int allowed; } Function;
typedef struct { const Kernel *kernel; uint64_t values[32]; int copy; char *to, *from; size_t bytes; } Node;
typedef struct { int live; int count; Node nodes[256]; } Graph;
/* What waits in a stream: a node, a launch of a graph, a fill, rows of bytes, or a wait for a place in another stream. */
typedef enum { NODE, GRAPH, FILL, ROWS, WAIT } Kind;
typedef struct { Kind kind; Node node; Graph *graph; int value, stream, place; size_t to_pitch, from_pitch, rows; } Work;
typedef struct { Work *work; int count, room, done; } Stream;
typedef struct { int stream, place; } Event;
enum { MOST_STREAMS = 512, MOST_EVENTS = 8192, STREAM = 100, EVENT = 1000 };

static Allocation allocations[MOST];
static Function functions[256];
static Graph graphs[64];
static Stream queues[MOST_STREAMS];
static Event recorded[MOST_EVENTS];
static int made_streams, made_events, put_off_first, put_off_others;
static char log_text[LOG_BYTES], problem[512];
static size_t log_used;
static void *captured_stream;
static int calls, fail_at, fail_code, lost, current, streams, events, modules, mapped, capturing, machine = 190, major = 9, minor = 0;
static const char *architecture = "gfx942:sramecc+:xnack-";
static size_t memory_bytes = (size_t)1 << 30;
static uint32_t shared_limit = 227 << 10;

/* Kernels: kinds are p pointer, i int32, l int64, f float. */
static void copy_f32(void **p) { memcpy(*(char **)p[1], *(char **)p[0], (size_t)*(int32_t *)p[2] * 4); }
static void add_f32(void **p) {
    float *a = *(float **)p[0], *b = *(float **)p[1], *out = *(float **)p[2];
    for (int i = 0; i < *(int32_t *)p[3]; i++) out[i] = a[i] + b[i];
}
static void scale_f32(void **p) {
    float *a = *(float **)p[0], *out = *(float **)p[1];
    for (int64_t i = 0; i < *(int64_t *)p[3]; i++) out[i] = a[i] * *(float *)p[2];
}
/* ids, table, last_tokens, row_slots, out, rows, width */
static void embed_f32(void **p) {
    int32_t *ids = *(int32_t **)p[0], *last = *(int32_t **)p[2], *slots = *(int32_t **)p[3];
    float *table = *(float **)p[1], *out = *(float **)p[4];
    int32_t rows = *(int32_t *)p[5], width = *(int32_t *)p[6];
    for (int r = 0; r < rows; r++) {
        int32_t id = ids[r] < 0 ? last[slots[r]] : ids[r];
        memcpy(out + (size_t)r * width, table + (size_t)id * width, (size_t)width * 4);
    }
}
/* rows of x added to by one row: x, row, rows, width */
static void add_row_f32(void **p) {
    float *x = *(float **)p[0], *row = *(float **)p[1];
    for (int r = 0; r < *(int32_t *)p[2]; r++)
        for (int c = 0; c < *(int32_t *)p[3]; c++) x[r * *(int32_t *)p[3] + c] += row[c];
}
/* chosen rows: x, indices, out, rows, width */
static void take_rows_f32(void **p) {
    float *x = *(float **)p[0], *out = *(float **)p[2];
    int32_t *index = *(int32_t **)p[1], width = *(int32_t *)p[4];
    for (int r = 0; r < *(int32_t *)p[3]; r++) memcpy(out + (size_t)r * width, x + (size_t)index[r] * width, (size_t)width * 4);
}
/* logits, slots, tokens, last_tokens, rows, vocabulary */
static void argmax_f32(void **p) {
    float *logits = *(float **)p[0];
    int32_t *slots = *(int32_t **)p[1], *tokens = *(int32_t **)p[2], *last = *(int32_t **)p[3], width = *(int32_t *)p[5];
    for (int r = 0; r < *(int32_t *)p[4]; r++) {
        int best = 0;
        for (int c = 1; c < width; c++)
            if (logits[r * width + c] > logits[r * width + best]) best = c;
        tokens[r] = best;
        if (slots[r] >= 0) last[slots[r]] = best;
    }
}
/* hidden rows into a cache of blocks: x, slots (int64, -1 writes nothing), cache, rows, width */
static void write_cache_f32(void **p) {
    float *x = *(float **)p[0], *cache = *(float **)p[2];
    int64_t *slots = *(int64_t **)p[1];
    int32_t width = *(int32_t *)p[4];
    for (int r = 0; r < *(int32_t *)p[3]; r++)
        if (slots[r] >= 0) memcpy(cache + slots[r] * width, x + (size_t)r * width, (size_t)width * 4);
}
/* adds to each row what the cache has of its sequence up to it: cache, tables, starts, lengths, counts, x, columns, block tokens, width */
static void read_cache_f32(void **p) {
    float *cache = *(float **)p[0], *x = *(float **)p[5];
    int32_t *tables = *(int32_t **)p[1], *starts = *(int32_t **)p[2], *lengths = *(int32_t **)p[3], *counts = *(int32_t **)p[4];
    int32_t columns = *(int32_t *)p[6], tokens = *(int32_t *)p[7], width = *(int32_t *)p[8];
    for (int s = 0; s < counts[2]; s++)
        for (int r = starts[s]; r < starts[s + 1]; r++)
            for (int at = 0; at <= lengths[s] - (starts[s + 1] - r); at++) {
                float *row = cache + ((size_t)tables[s * columns + at / tokens] * tokens + at % tokens) * width;
                for (int c = 0; c < width; c++) x[r * width + c] += row[c];
            }
}
static void fault(void **p) { (void)p; lost = ILLEGAL_ADDRESS; }

static void nothing(void **p) { (void)p; }

enum { MOST_DECLARED = 256 };
static Kernel declared[MOST_DECLARED];
static int declared_count;

static const Kernel kernels[] = {
    {"copy_f32", "ppi", copy_f32},
    {"add_f32", "pppi", add_f32},
    {"scale_f32", "ppfl", scale_f32},
    {"embed_f32", "pppppii", embed_f32},
    {"add_row_f32", "ppii", add_row_f32},
    {"take_rows_f32", "pppii", take_rows_f32},
    {"argmax_f32", "ppppii", argmax_f32},
    {"write_cache_f32", "pppii", write_cache_f32},
    {"read_cache_f32", "ppppppiii", read_cache_f32},
    {"fault", "p", fault},
};

static int wrong(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    if (!problem[0]) vsnprintf(problem, sizeof problem, format, rest);
    va_end(rest);
    return INVALID;
}

/* Logs a call; gives back the code it is told to fail with, or that of a lost device. */
static int enter(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    if (log_used < LOG_BYTES - 512) {
        log_used += (size_t)vsnprintf(log_text + log_used, 400, format, rest);
        log_text[log_used++] = '\n';
        log_text[log_used] = 0;
    }
    va_end(rest);
    calls++;
    if (calls == fail_at) return fail_code;
    return lost;
}
/* One call at a time: threads that upload weights call beside the one that captures. */
static pthread_mutex_t calling = PTHREAD_MUTEX_INITIALIZER;
static void leave(pthread_mutex_t **held) { pthread_mutex_unlock(*held); }
#define ENTER(...) \
    pthread_mutex_lock(&calling); \
    __attribute__((cleanup(leave), unused)) pthread_mutex_t *held_ = &calling; \
    do { int code_ = enter(__VA_ARGS__); if (code_) return code_; } while (0)
#define CURRENT(name) do { if (!current) return wrong("%s: no context is current", name); } while (0)

static Allocation *holding(const void *address, size_t bytes) {
    for (int i = 0; i < MOST; i++) {
        Allocation *a = &allocations[i];
        if (a->start && (char *)address >= a->start && (char *)address + bytes <= a->start + a->bytes) return a;
    }
    return NULL;
}

static int allocate(void **out, size_t bytes, int host) {
    CURRENT("allocate");
    size_t used = 0;
    for (int i = 0; i < MOST; i++)
        if (allocations[i].start && !allocations[i].host) used += allocations[i].bytes;
    if (!host && used + bytes > memory_bytes) return OUT_OF_MEMORY;
    for (int i = 0; i < MOST; i++)
        if (!allocations[i].start) {
            char *start = aligned_alloc(256, (bytes + 255) / 256 * 256);
            memset(start, 0xAB, (bytes + 255) / 256 * 256);
            allocations[i] = (Allocation){start, bytes, host};
            *out = start;
            return 0;
        }
    return OUT_OF_MEMORY;
}

static int release(void *address, int host) {
    for (int i = 0; i < MOST; i++)
        if (allocations[i].start == address && address && allocations[i].host == host) {
            free(address);
            allocations[i].start = NULL;
            return 0;
        }
    return wrong("free: %s is not allocated (freed twice?)", address ? "the address" : "null");
}

static int keep_node(Node node) {
    Graph *graph = &graphs[capturing - 1];
    if (graph->count == 256) return wrong("capture: too many nodes");
    graph->nodes[graph->count++] = node;
    return 0;
}

static void run(Work *work);

/* Do what waits in a stream up to a place in it. */
static void run_to(int stream, int place) {
    Stream *queue = &queues[stream];
    while (queue->done < place) run(&queue->work[queue->done++]);
}
static void run_everything(void) {
    for (int i = 0; i < MOST_STREAMS; i++) run_to(i, queues[i].count);
}
static int number_of(void *stream) { return (int)(uintptr_t)stream - STREAM; }

static int queued(void *stream, Work work) {
    int number = number_of(stream);
    if (number < 1 || number > made_streams || number >= MOST_STREAMS) return wrong("not a stream");
    Stream *queue = &queues[number];
    if (queue->count == queue->room) {
        queue->room = queue->room ? 2 * queue->room : 64;
        queue->work = realloc(queue->work, (size_t)queue->room * sizeof(Work));
    }
    queue->work[queue->count++] = work;
    if (!(number == 1 ? put_off_first : put_off_others)) run_to(number, queue->count);
    return 0;
}

static int copy(char *to, char *from, size_t bytes, int to_device, void *stream) {
    CURRENT("copy");
    if (!stream) return wrong("copy: the default stream");
    Allocation *device = holding(to_device ? to : from, bytes), *other = holding(to_device ? from : to, bytes);
    if (!device || device->host) return wrong("copy: %zu bytes outside of device memory", bytes);
    Node node = {.copy = 1, .to = to, .from = from, .bytes = bytes};
    if (capturing && stream == captured_stream) return keep_node(node);
    if (queued(stream, (Work){.kind = NODE, .node = node})) return INVALID;
    if (!other) run_to(number_of(stream), queues[number_of(stream)].count); /* what is not page-locked may change at once */
    return 0;
}

static int copy_rows(char *to, size_t to_pitch, char *from, size_t from_pitch, size_t width, size_t rows, int to_device, void *stream) {
    CURRENT("copy rows");
    if (!stream || capturing) return wrong("copy rows: not a stream that can do it now");
    if (!rows || !width || width > to_pitch || width > from_pitch) return wrong("copy rows: of %zu bytes, %zu and %zu apart", width, to_pitch, from_pitch);
    Allocation *target = holding(to, (rows - 1) * to_pitch + width), *source = holding(from, (rows - 1) * from_pitch + width);
    if (!target || !source || target->host == to_device || source->host != to_device) return wrong("copy rows: outside of memory, or of the wrong kind");
    Work work = {.kind = ROWS, .node = {.to = to, .from = from, .bytes = width}, .to_pitch = to_pitch, .from_pitch = from_pitch, .rows = rows};
    return queued(stream, work);
}

static void run_node(Node *node) {
    if (node->copy) {
        memcpy(node->to, node->from, node->bytes);
        return;
    }
    void *params[32];
    for (int i = 0; i < 32; i++) params[i] = &node->values[i];
    node->kernel->run(params);
}

static void run(Work *given) {
    Work work = *given; /* the queue may move meanwhile */
    Node *node = &work.node;
    switch (work.kind) {
        case NODE: run_node(node); break;
        case GRAPH: for (int i = 0; i < work.graph->count; i++) run_node(&work.graph->nodes[i]); break;
        case FILL: memset(node->to, work.value, node->bytes); break;
        case ROWS: for (size_t r = 0; r < work.rows; r++) memcpy(node->to + r * work.to_pitch, node->from + r * work.from_pitch, node->bytes); break;
        case WAIT: run_to(work.stream, work.place); break;
    }
}

static int launch(Function *function, const uint32_t *grid, const uint32_t *block, uint32_t shared, void *stream, void **params) {
    CURRENT("launch");
    if (!stream) return wrong("launch: the default stream");
    if (!function->live) return wrong("launch: the function's module is not loaded");
    if (!grid[0] || !grid[1] || !grid[2]) return wrong("launch: an empty grid");
    if (block[0] * block[1] * block[2] > 1024 || block[1] != 1 || block[2] != 1) return wrong("launch: a block of %u", block[0]);
    if (shared > shared_limit) return wrong("launch: %u bytes of shared memory", shared);
    if (machine == 190 && shared > (48 << 10) && shared > function->shared) return wrong("launch: shared memory not asked for");
    Node node = {.kernel = function->kernel};
    int count = (int)strlen(function->kernel->kinds);
    for (int i = 0; i < count + 2; i++) {
        char kind = i < count ? function->kernel->kinds[i] : 's';
        if (!params[i] || (uintptr_t)params[i] % 8) return wrong("launch: parameter %d is nowhere", i);
        if (kind == 'i' || kind == 'f') node.values[i] = *(uint32_t *)params[i];
        else node.values[i] = *(uint64_t *)params[i];
        void *address = (void *)(uintptr_t)node.values[i];
        if (kind == 'p' || (kind == 's' && address)) {
            Allocation *found = holding(address, 1);
            if (!found || found->host) return wrong("launch: parameter %d of %s is outside of device memory", i, function->kernel->name);
        }
    }
    return capturing ? keep_node(node) : queued(stream, (Work){.kind = NODE, .node = node});
}

/* What tests tell it and ask of it. */
void fake_reset(void) {
    for (int i = 0; i < MOST; i++)
        if (allocations[i].start) free(allocations[i].start);
    memset(allocations, 0, sizeof allocations);
    memset(functions, 0, sizeof functions);
    memset(graphs, 0, sizeof graphs);
    for (int i = 0; i < MOST_STREAMS; i++) free(queues[i].work);
    memset(queues, 0, sizeof queues);
    memset(recorded, 0, sizeof recorded);
    made_streams = made_events = put_off_first = put_off_others = 0;
    log_used = 0, log_text[0] = 0, problem[0] = 0;
    declared_count = 0;
    calls = fail_at = fail_code = lost = current = streams = events = modules = mapped = capturing = 0;
    machine = 190, major = 9, minor = 0, memory_bytes = (size_t)1 << 30, shared_limit = 227 << 10;
}
const char *fake_log(void) { return log_text; }
const char *fake_problem(void) { return problem; }
void fake_clear_log(void) { log_used = 0, log_text[0] = 0; }
/* Whether work of the first stream, or of all others, is put off until something waits for it. */
void fake_put_off(int first, int others) {
    pthread_mutex_lock(&calling);
    run_everything();
    put_off_first = first, put_off_others = others;
    pthread_mutex_unlock(&calling);
}
void fake_fail(int nth_from_now, int code) { fail_at = calls + nth_from_now, fail_code = code; }
void fake_be(int elf_machine, int new_major, int new_minor, uint32_t shared, int64_t bytes) {
    machine = elf_machine, major = new_major, minor = new_minor, shared_limit = shared, memory_bytes = (size_t)bytes;
}
int64_t fake_device_bytes(void) {
    int64_t total = 0;
    for (int i = 0; i < MOST; i++)
        if (allocations[i].start && !allocations[i].host) total += (int64_t)allocations[i].bytes;
    return total;
}
/* A kernel that does nothing, of these kinds of parameters. */
void fake_declare(const char *name, const char *kinds) {
    if (declared_count < MOST_DECLARED) declared[declared_count++] = (Kernel){strdup(name), strdup(kinds), nothing};
}
/* Everything that is still held: allocations, streams, events, modules, graphs. */
int fake_held(void) {
    int held = streams + events + modules + mapped;
    for (int i = 0; i < MOST; i++) held += allocations[i].start != NULL;
    for (int i = 0; i < 64; i++) held += graphs[i].live;
    return held;
}

/* Both vendors' names for the same functions. */
#define BOTH(cuda, hip, parameters, arguments) int cuda parameters; int hip parameters { return cuda arguments; } int cuda parameters

static const char *error_name(int code) {
    switch (code) {
        case INVALID: return "ERROR_INVALID_VALUE";
        case OUT_OF_MEMORY: return "ERROR_OUT_OF_MEMORY";
        case NO_BINARY: return "ERROR_NO_BINARY_FOR_GPU";
        case NOT_FOUND: return "ERROR_NOT_FOUND";
        case ILLEGAL_ADDRESS: return "ERROR_ILLEGAL_ADDRESS";
        default: return NULL;
    }
}
BOTH(cuGetErrorName, hipDrvGetErrorName, (int code, const char **out), (code, out)) { *out = error_name(code); return *out ? 0 : INVALID; }
BOTH(cuGetErrorString, hipDrvGetErrorString, (int code, const char **out), (code, out)) { *out = "as the fake driver was told"; (void)code; return 0; }
BOTH(cuInit, hipInit, (unsigned flags), (flags)) { ENTER("init %u", flags); return 0; }
BOTH(cuDeviceGetCount, hipGetDeviceCount, (int *out), (out)) { ENTER("device count"); *out = 1; return 0; }
BOTH(cuDeviceGet, hipDeviceGet, (int *out, int ordinal), (out, ordinal)) { ENTER("device %d", ordinal); *out = 7; return 0; }
BOTH(cuDeviceGetName, hipDeviceGetName, (char *out, int bytes, int device), (out, bytes, device)) {
    ENTER("device name %d", device); snprintf(out, (size_t)bytes, "Fake accelerator"); return 0;
}
int cuDeviceGetAttribute(int *out, int which, int device) { ENTER("attribute %d of %d", which, device); *out = which == 75 ? major : minor; return 0; }
int hipGetDevicePropertiesR0600(char *out, int device) {
    ENTER("properties of %d", device); strcpy(out, "Fake gfx accelerator"); strcpy(out + 1160, architecture); return 0;
}
int cuDevicePrimaryCtxRetain(void **out, int device) { ENTER("retain context of %d", device); *out = (void *)(uintptr_t)77; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { ENTER("release context of %d", device); return 0; }
int cuCtxSetCurrent(void *context) { ENTER("set context"); current = context == (void *)(uintptr_t)77; return current ? 0 : wrong("not a context"); }
int hipSetDevice(int device) { ENTER("set device %d", device); current = device == 7; return current ? 0 : wrong("not a device"); }
BOTH(cuMemGetInfo_v2, hipMemGetInfo, (size_t *free_bytes, size_t *total), (free_bytes, total)) {
    ENTER("memory information"); CURRENT("memory information"); *free_bytes = memory_bytes - (size_t)fake_device_bytes(); *total = memory_bytes; return 0;
}
BOTH(cuMemAlloc_v2, hipMalloc, (void **out, size_t bytes), (out, bytes)) { ENTER("allocate %zu", bytes); return allocate(out, bytes, 0); }
BOTH(cuMemFree_v2, hipFree, (void *address), (address)) { ENTER("free"); run_everything(); return release(address, 0); }
/* Memory of another process: there is one alone, so that it is mapped where it lies. */
typedef struct { char bytes[64]; } Handle;
BOTH(cuIpcGetMemHandle, hipIpcGetMemHandle, (Handle *out, void *address), (out, address)) {
    ENTER("memory handle");
    Allocation *found = holding(address, 1);
    if (!found || found->host || found->start != (char *)address) return wrong("memory handle: not an allocation on the device");
    memset(out, 0, sizeof *out);
    memcpy(out->bytes, &address, sizeof address);
    return 0;
}
BOTH(cuIpcOpenMemHandle_v2, hipIpcOpenMemHandle, (void **out, Handle handle, unsigned flags), (out, handle, flags)) {
    ENTER("map memory, %u", flags); CURRENT("map memory");
    memcpy(out, handle.bytes, sizeof *out);
    if (flags != 1 || !holding(*out, 1)) return wrong("map memory: not a handle");
    mapped++;
    return 0;
}
BOTH(cuIpcCloseMemHandle, hipIpcCloseMemHandle, (void *address), (address)) {
    ENTER("unmap memory");
    (void)address;
    return mapped-- > 0 ? 0 : wrong("unmap memory: not mapped");
}
BOTH(cuMemHostAlloc, hipHostMalloc, (void **out, size_t bytes, unsigned flags), (out, bytes, flags)) {
    ENTER("allocate host %zu, %u", bytes, flags); return allocate(out, bytes, 1);
}
BOTH(cuMemFreeHost, hipHostFree, (void *address), (address)) { ENTER("free host"); run_everything(); return release(address, 1); }
BOTH(cuMemcpyHtoDAsync_v2, hipMemcpyHtoDAsync, (void *to, void *from, size_t bytes, void *stream), (to, from, bytes, stream)) {
    ENTER("copy %zu to device", bytes); return copy(to, from, bytes, 1, stream);
}
BOTH(cuMemcpyDtoHAsync_v2, hipMemcpyDtoHAsync, (void *to, void *from, size_t bytes, void *stream), (to, from, bytes, stream)) {
    ENTER("copy %zu to host", bytes); return copy(to, from, bytes, 0, stream);
}
BOTH(cuMemcpyDtoDAsync_v2, hipMemcpyDtoDAsync, (void *to, void *from, size_t bytes, void *stream), (to, from, bytes, stream)) {
    ENTER("copy %zu on device", bytes);
    Allocation *source = holding(from, bytes);
    if (!source || source->host) return wrong("copy: %zu bytes outside of device memory", bytes);
    return copy(to, from, bytes, 1, stream);
}
BOTH(cuMemsetD8Async, hipMemsetD8Async, (void *to, unsigned char value, size_t bytes, void *stream), (to, value, bytes, stream)) {
    ENTER("fill %zu with %u", bytes, value);
    CURRENT("fill");
    if (capturing || !stream || !holding(to, bytes)) return wrong("fill: %zu bytes outside of device memory", bytes);
    return queued(stream, (Work){.kind = FILL, .node = {.to = to, .bytes = bytes}, .value = value});
}
/* As in cuda.h. */
typedef struct {
    size_t from_x, from_y; unsigned from_kind; char *from_host, *from_device; void *from_array; size_t from_pitch;
    size_t to_x, to_y; unsigned to_kind; char *to_host, *to_device; void *to_array; size_t to_pitch;
    size_t width, height;
} RowCopy;
int cuMemcpy2DAsync_v2(const RowCopy *c, void *stream) {
    ENTER("copy %zu rows of %zu to %s", c->height, c->width, c->to_kind == 2 ? "device" : "host");
    if (c->from_kind + c->to_kind != 3 || c->from_x || c->from_y || c->to_x || c->to_y) return wrong("copy rows: kinds %u and %u", c->from_kind, c->to_kind);
    int to_device = c->to_kind == 2;
    char *to = to_device ? c->to_device : c->to_host, *from = to_device ? c->from_host : c->from_device;
    return copy_rows(to, c->to_pitch, from, c->from_pitch, c->width, c->height, to_device, stream);
}
int hipMemcpy2DAsync(char *to, size_t to_pitch, char *from, size_t from_pitch, size_t width, size_t height, int kind, void *stream) {
    ENTER("copy %zu rows of %zu to %s", height, width, kind == 1 ? "device" : "host");
    if (kind != 1 && kind != 2) return wrong("copy rows: kind %d", kind);
    return copy_rows(to, to_pitch, from, from_pitch, width, height, kind == 1, stream);
}
BOTH(cuStreamCreate, hipStreamCreateWithFlags, (void **out, unsigned flags), (out, flags)) {
    ENTER("create stream %u", flags); CURRENT("create stream"); streams++; *out = (void *)(uintptr_t)(STREAM + ++made_streams); return 0;
}
BOTH(cuStreamDestroy_v2, hipStreamDestroy, (void *stream), (stream)) {
    ENTER("destroy stream"); run_to(number_of(stream), queues[number_of(stream)].count); streams--; return 0;
}
BOTH(cuStreamSynchronize, hipStreamSynchronize, (void *stream), (stream)) {
    ENTER("synchronise"); if (capturing && stream == captured_stream) return wrong("synchronise: the stream is being captured");
    run_to(number_of(stream), queues[number_of(stream)].count);
    return lost;
}
BOTH(cuEventCreate, hipEventCreateWithFlags, (void **out, unsigned flags), (out, flags)) {
    ENTER("create event %u", flags); CURRENT("create event"); events++; *out = (void *)(uintptr_t)(EVENT + ++made_events); return 0;
}
BOTH(cuEventDestroy_v2, hipEventDestroy, (void *event), (event)) { ENTER("destroy event"); (void)event; events--; return 0; }
BOTH(cuEventRecord, hipEventRecord, (void *event, void *stream), (event, stream)) {
    ENTER("record event"); recorded[(uintptr_t)event - EVENT] = (Event){number_of(stream), queues[number_of(stream)].count}; return 0;
}
BOTH(cuEventSynchronize, hipEventSynchronize, (void *event), (event)) {
    ENTER("wait for event"); run_to(recorded[(uintptr_t)event - EVENT].stream, recorded[(uintptr_t)event - EVENT].place); return lost;
}
BOTH(cuStreamWaitEvent, hipStreamWaitEvent, (void *stream, void *event, unsigned flags), (stream, event, flags)) {
    ENTER("wait in stream, %u", flags);
    if (capturing || flags) return wrong("wait in stream: not now, or with flags");
    Event *found = &recorded[(uintptr_t)event - EVENT];
    return found->stream ? queued(stream, (Work){.kind = WAIT, .stream = found->stream, .place = found->place}) : 0;
}
BOTH(cuEventElapsedTime, hipEventElapsedTime, (float *out, void *start, void *end), (out, start, end)) {
    ENTER("elapsed time"); (void)start; (void)end; *out = 2.5f; return 0;
}
BOTH(cuModuleLoadData, hipModuleLoadData, (void **out, const unsigned char *image), (out, image)) {
    ENTER("load module");
    CURRENT("load module");
    if (memcmp(image, "\x7f" "ELF", 4)) return wrong("load module: not an ELF image");
    if ((image[18] | image[19] << 8) != machine) return NO_BINARY;
    *out = (void *)(uintptr_t)(300 + ++modules);
    return 0;
}
BOTH(cuModuleUnload, hipModuleUnload, (void *module), (module)) { ENTER("unload module"); (void)module; modules--; return 0; }
BOTH(cuModuleGetFunction, hipModuleGetFunction, (void **out, void *module, const char *name), (out, module, name)) {
    ENTER("find %s", name);
    (void)module;
    for (size_t k = 0; k < sizeof kernels / sizeof *kernels; k++)
        if (!strcmp(kernels[k].name, name))
            for (int i = 0; i < 256; i++)
                if (!functions[i].live) {
                    functions[i] = (Function){.live = 1, .kernel = &kernels[k]};
                    *out = &functions[i];
                    return 0;
                }
    for (int k = 0; k < declared_count; k++)
        if (!strcmp(declared[k].name, name))
            for (int i = 0; i < 256; i++)
                if (!functions[i].live) {
                    functions[i] = (Function){.live = 1, .kernel = &declared[k]};
                    *out = &functions[i];
                    return 0;
                }
    return NOT_FOUND;
}
int cuFuncSetAttribute(Function *function, int which, int value) {
    ENTER("set attribute %d of %s to %d", which, function->kernel->name, value);
    if (which != 8 || (uint32_t)value > shared_limit) return wrong("set attribute: %d bytes of shared memory", value);
    function->shared = (uint32_t)value;
    return 0;
}
BOTH(cuLaunchKernel, hipModuleLaunchKernel,
     (Function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **params, void **extra),
     (f, gx, gy, gz, bx, by, bz, shared, stream, params, extra)) {
    ENTER("launch %s grid %u %u %u block %u shared %u", f->kernel->name, gx, gy, gz, bx, shared);
    if (extra) return wrong("launch: a packed buffer");
    return launch(f, (uint32_t[]){gx, gy, gz}, (uint32_t[]){bx, by, bz}, shared, stream, params);
}
/* As in cuda.h. */
typedef struct { int id; char pad[4]; union { char pad[64]; uint32_t words[16]; } value; } Attribute;
typedef struct { unsigned grid[3], block[3], shared; void *stream; Attribute *attributes; unsigned count; } Configuration;
int cuLaunchKernelEx(const Configuration *c, Function *f, void **params, void **extra) {
    char text[160] = "";
    for (unsigned i = 0; i < c->count; i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), " attribute %d = %u", c->attributes[i].id, c->attributes[i].value.words[0]);
    ENTER("launch %s grid %u %u %u block %u shared %u%s", f->kernel->name, c->grid[0], c->grid[1], c->grid[2], c->block[0], c->shared, text);
    for (unsigned i = 0; i < c->count; i++)
        if (c->attributes[i].id == 4 && c->grid[0] % c->attributes[i].value.words[0]) return wrong("launch: a grid that is no multiple of the cluster");
    if (extra) return wrong("launch: a packed buffer");
    return launch(f, c->grid, c->block, c->shared, c->stream, params);
}
BOTH(cuStreamBeginCapture_v2, hipStreamBeginCapture, (void *stream, int mode), (stream, mode)) {
    ENTER("begin capture %d", mode);
    captured_stream = stream;
    if (capturing) return wrong("begin capture: one has begun");
    for (int i = 0; i < 64; i++)
        if (!graphs[i].live) {
            graphs[i] = (Graph){.live = 1};
            capturing = i + 1;
            return 0;
        }
    return OUT_OF_MEMORY;
}
BOTH(cuStreamEndCapture, hipStreamEndCapture, (void *stream, void **out), (stream, out)) {
    ENTER("end capture");
    (void)stream;
    if (!capturing) return wrong("end capture: none has begun");
    *out = &graphs[capturing - 1];
    capturing = 0;
    return 0;
}
BOTH(cuGraphInstantiateWithFlags, hipGraphInstantiateWithFlags, (void **out, Graph *graph, unsigned long long flags), (out, graph, flags)) {
    ENTER("instantiate graph of %d nodes, %llu", graph->count, flags);
    for (int i = 0; i < 64; i++)
        if (!graphs[i].live) {
            graphs[i] = *graph;
            *out = &graphs[i];
            return 0;
        }
    return OUT_OF_MEMORY;
}
BOTH(cuGraphLaunch, hipGraphLaunch, (Graph *graph, void *stream), (graph, stream)) {
    ENTER("launch graph of %d nodes", graph->count);
    CURRENT("launch graph");
    if (!graph->live || !stream || capturing) return wrong("launch graph: not one that can run now");
    return queued(stream, (Work){.kind = GRAPH, .graph = graph});
}
static int destroy(Graph *graph) {
    if (!graph->live) return wrong("destroy graph: destroyed before");
    graph->live = 0;
    return 0;
}
BOTH(cuGraphDestroy, hipGraphDestroy, (Graph *graph), (graph)) { ENTER("destroy graph"); return destroy(graph); }
BOTH(cuGraphExecDestroy, hipGraphExecDestroy, (Graph *graph), (graph)) {
    ENTER("destroy executable graph"); run_everything(); return destroy(graph);
}
