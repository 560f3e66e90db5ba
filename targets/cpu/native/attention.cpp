// Paged causal attention of a step: rows of decoding sequences and chunks of prompts at any offset into their context.
#include "attention_decode.h"
#include "attention_prefill.h"

// How a context is cut into splits: by its visible length alone, so that neither the threads nor the other sequences of the step
// change a sum. Splits begin at block borders.
struct Splits {
    int64_t first, last, size;  // visible positions [first, last)
    int64_t count;
    static constexpr int64_t MOST = 16;

    template <class T> Splits(const Attention<T>& attention, int64_t sequence) {
        constexpr int64_t GRAIN = 64;
        last = attention.lengths[sequence];
        first = attention.first_visible(last - 1);
        int64_t least = (last - first + MOST - 1) / MOST;
        size = least < 2 * GRAIN ? 2 * GRAIN : (least + GRAIN - 1) / GRAIN * GRAIN;
        int64_t origin = first / GRAIN * GRAIN;
        count = (last - origin + size - 1) / size;
    }
    int64_t begin(int64_t split) const { return split ? first / 64 * 64 + split * size : first; }
    int64_t end(int64_t split) const { return split + 1 < count ? begin(split + 1) : last; }
};

// The step's decode work. Long sequences are shared out split by split and merged in a second round, the others go to one
// thread for each of `parts` ranges of kv heads.
template <class T> struct DecodeStep {
    static constexpr int64_t MOST_SHARED = 17, SLOTS = MOST_SHARED * (Splits::MOST + 1);

    const Attention<T>& attention;
    Decode<T> decode;
    int64_t sequences, tokens = 0, shared = 0, parts = 1, tasks = 0;

    DecodeStep(const Attention<T>& a, int threads) : attention(a), decode(a), sequences(a.counts[1]) {
        for (int64_t s = 0; s < sequences; s++) tokens += visible(s);
        int64_t pieces = 0;
        for (int64_t s = 0; s < sequences; s++) {
            bool is = is_shared(s);
            shared += is;
            pieces += is ? Splits(attention, s).count : 1;
        }
        if (pieces) parts = 4 * threads / pieces;
        parts = parts < 1 ? 1 : parts > attention.kv_heads ? attention.kv_heads : parts;
        tasks = pieces * parts;
    }

    int64_t visible(int64_t s) const { return attention.lengths[s] - attention.first_visible(attention.lengths[s] - 1); }
    bool is_shared(int64_t s) const { return visible(s) * (MOST_SHARED - 1) > tokens && Splits(attention, s).count > 1; }

    // A partial result of one split: all heads' sums, then their largest scores and totals.
    int64_t slot_floats() const { return attention.heads * (decode.padded + 2); }
    float* sums(float* slot, int64_t head) const { return slot + head * decode.padded; }
    Partial* partials(float* slot) const { return reinterpret_cast<Partial*>(slot + attention.heads * decode.padded); }

    // Where a thread is in the list of tasks, which it takes in order: `before` pieces and `slot` slots come before `sequence`.
    struct Cursor {
        int64_t sequence = 0, before = 0, slot = 0;
    };

    // Task number `task`. `slots` are the team's, `own` is two slots and the queries of a group for this thread.
    void run(int64_t task, Cursor& at, float* slots, float* own) const {
        int64_t part = task % parts, piece = task / parts;
        for (;; at.sequence++) {
            bool is = is_shared(at.sequence);
            int64_t pieces = is ? Splits(attention, at.sequence).count : 1;
            if (piece < at.before + pieces) break;
            at.before += pieces;
            if (is) at.slot += pieces;
        }
        Splits splits(attention, at.sequence);
        int64_t from = attention.kv_heads * part / parts, to = attention.kv_heads * (part + 1) / parts, split = piece - at.before;
        for (int64_t kv_head = from; kv_head < to; kv_head++) {
            if (is_shared(at.sequence)) one_split(at.sequence, splits, split, kv_head, slots + (at.slot + split) * slot_floats(), own);
            else all_splits(at.sequence, splits, kv_head, own);
        }
    }

    T* queries_in(float* own) const { return reinterpret_cast<T*>(own + 2 * slot_floats()); }

    void one_split(int64_t s, const Splits& splits, int64_t split, int64_t kv_head, float* slot, float* own) const {
        int64_t head = kv_head * attention.group;
        decode.take_queries(attention.starts[s], kv_head, queries_in(own));
        decode.run(s, splits.begin(split), splits.end(split), kv_head, queries_in(own), partials(slot) + head, sums(slot, head));
    }

    void all_splits(int64_t s, const Splits& splits, int64_t kv_head, float* own) const {
        float* later = own + slot_floats();
        one_split(s, splits, 0, kv_head, own, own);
        int64_t head = kv_head * attention.group;
        for (int64_t split = 1; split < splits.count; split++) {
            one_split(s, splits, split, kv_head, later, own);
            for (int64_t h = head; h < head + attention.group; h++)
                decode.merge(partials(own)[h], sums(own, h), partials(later)[h], sums(later, h));
        }
        for (int64_t h = head; h < head + attention.group; h++) decode.write(attention.starts[s], h, partials(own)[h], sums(own, h));
    }

    // Merges the splits of head `task` of the shared sequences.
    void merge(int64_t task, float* slots) const {
        int64_t wanted = task / attention.heads, h = task % attention.heads;
        for (int64_t s = 0;; s++) {
            if (!is_shared(s)) continue;
            int64_t count = Splits(attention, s).count;
            if (wanted-- == 0) {
                for (int64_t split = 1; split < count; split++) {
                    float* later = slots + split * slot_floats();
                    decode.merge(partials(slots)[h], sums(slots, h), partials(later)[h], sums(later, h));
                }
                return decode.write(attention.starts[s], h, partials(slots)[h], sums(slots, h));
            }
            slots += count * slot_floats();
        }
    }
};

// Chunks of prompts, last sets first: they see the most keys.
template <class T> struct PrefillStep {
    const Attention<T>& attention;
    int64_t lanes;  // of a set

    explicit PrefillStep(const Attention<T>& a) : attention(a), lanes(Prefill<T>::tiles_of(a.head_dim) * Prefill<T>::LANES) {}

    int64_t sets(int64_t s) const { return ((attention.starts[s + 1] - attention.starts[s]) * attention.group + lanes - 1) / lanes; }
    int64_t tasks() const {
        int64_t count = 0;
        for (int64_t s = attention.counts[1]; s < attention.counts[2]; s++) count += sets(s);
        return count * attention.kv_heads;
    }
    void run(int64_t task, Prefill<T>& prefill) const {
        int64_t kv_head = task % attention.kv_heads, set = task / attention.kv_heads;
        for (int64_t s = attention.counts[1];; s++) {
            int64_t count = sets(s);
            if (set < count) return prefill.run(s, kv_head, count - 1 - set);
            set -= count;
        }
    }
};

template <class T> struct ScratchPlan {
    int64_t slots, own, prefill;  // bytes: shared partial results, and those and prefill's of each thread

    explicit ScratchPlan(const Attention<T>& attention) {
        Decode<T> decode(attention);
        int64_t slot = attention.heads * (decode.padded + 2) * 4;
        slots = in_lines(DecodeStep<T>::SLOTS * slot);
        own = in_lines(2 * slot + attention.group * decode.padded * static_cast<int64_t>(sizeof(T)));
        Prefill<T>(attention, nullptr, prefill);
    }
    static int64_t in_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
    int64_t bytes(int threads) const { return slots + (own + prefill) * threads; }
};

template <class T> static void attend(const Call& call, Team& team) {
    Attention<T> attention(call);
    ScratchPlan<T> plan(attention);
    float* slots = team.scratch<float>();
    char* own = team.scratch<char>(plan.slots + team.index * (plan.own + plan.prefill));
    DecodeStep<T> decode(attention, team.size);
    PrefillStep<T> chunks(attention);
    int64_t bytes, prefill_tasks = chunks.tasks(), tasks = prefill_tasks + decode.tasks;
    Prefill<T> prefill(attention, own + plan.own, bytes);
    typename DecodeStep<T>::Cursor cursor;
    for (int64_t task; (task = team.next()) < tasks;) {
        if (task < prefill_tasks) chunks.run(task, prefill);
        else decode.run(task - prefill_tasks, cursor, slots, reinterpret_cast<float*>(own));
    }
    if (!decode.shared) return;
    team.barrier();
    for (int64_t task; (task = team.next()) < decode.shared * attention.heads;) decode.merge(task, slots);
}

CHECK(attention) {
    if (call.inputs != 7 && call.inputs != 8) return "(q, k_cache, v_cache, sequence_starts, context_lengths, block_tables, counts[, sinks]) -> out";
    if (call.outputs != 1) return "one output";
    const Tensor &q = call.input(0), &k = call.input(1), &v = call.input(2), &out = call.output(0);
    if (!is_float(q) || k.type != q.type || v.type != q.type || out.type != q.type) return "q, caches and out of one type, float32 or bfloat16";
    if (q.rank != 3 || out.rank != 3 || q.strides[2] != 1 || out.strides[2] != 1) return "q and out [rows, heads, D], features side by side";
    for (int i = 0; i < 3; i++)
        if (q.shape[i] != out.shape[i]) return "q and out of one shape";
    const Tensor* caches[] = {&k, &v};
    for (const Tensor* cache : caches) {
        if (cache->rank != 4 || cache->shape[3] != q.shape[2]) return "caches [blocks, block_tokens, kv heads, D]";
        if (!is_dense(*cache) || cache->strides[0] != cache->shape[1] * cache->strides[1]) return "dense caches";
        for (int i = 0; i < 4; i++)
            if (cache->shape[i] != k.shape[i] || cache->shape[i] < 1) return "caches of one shape";
    }
    if (q.shape[1] < 1 || q.shape[1] % k.shape[2]) return "heads a multiple of kv heads";
    const Tensor &starts = call.input(3), &lengths = call.input(4), &tables = call.input(5), &counts = call.input(6);
    for (int i = 3; i < 7; i++)
        if (call.input(i).type != I32 || call.input(i).strides[call.input(i).rank - 1] != 1) return "step inputs of int32";
    if (starts.rank != 1 || lengths.rank != 1 || tables.rank != 2 || counts.rank != 1 || counts.shape[0] != 4) return "the step inputs of attention";
    if (starts.shape[0] != lengths.shape[0] + 1 || tables.shape[0] != lengths.shape[0]) return "the step inputs of attention";
    if (call.inputs == 8) {
        const Tensor& sinks = call.input(7);
        if (!is_float(sinks) || sinks.rank != 1 || sinks.shape[0] != q.shape[1] || sinks.strides[0] != 1) return "sinks[heads], float32 or bfloat16";
    }
    if (call.integer(1) < 0 || call.number(2) < 0) return "a window and a soft cap of 0 (none) or more";
    return nullptr;
}
SCRATCH(attention) {
    if (call.input(0).type == F32) return ScratchPlan<float>(Attention<float>(call)).bytes(threads);
    return ScratchPlan<bf16>(Attention<bf16>(call)).bytes(threads);
}
KERNEL(attention, "scale:number window:integer=0 softcap:number=0") {
    if (call.input(0).type == F32) attend<float>(call, team); else attend<bf16>(call, team);
}
