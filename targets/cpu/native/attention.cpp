// Paged causal attention of a step: rows of decoding sequences and chunks of prompts at any offset into their context.
#include "attention_decode.h"
#include "attention_prefill.h"

// How a context is cut into splits: by its visible length alone, so that neither the threads nor the other sequences of the step
// change a sum. Splits begin at block borders.
struct Splits {
    int64_t first, last, size;  // visible positions [first, last)
    int64_t count;
    static constexpr int64_t GRAIN = 64, LEAST = 256, MOST = 16;

    template <class T> Splits(const Attention<T>& attention, int64_t sequence) {
        last = attention.lengths[sequence];
        first = attention.first_visible(last - 1);
        int64_t least = (last - first + MOST - 1) / MOST;
        size = least < LEAST ? LEAST : (least + GRAIN - 1) / GRAIN * GRAIN;
        int64_t origin = first / GRAIN * GRAIN;
        count = (last - origin + size - 1) / size;
    }
    int64_t begin(int64_t split) const { return split ? first / GRAIN * GRAIN + split * size : first; }
    int64_t end(int64_t split) const { return split + 1 < count ? begin(split + 1) : last; }
};

// The step's decode work. Long sequences are shared out split by split and merged in a second round, the others go to one
// thread for each of `parts` ranges of kv heads.
template <class T, int HEAD_DIM> struct DecodeStep {
    static constexpr int64_t MOST_SHARED = 17, SLOTS = MOST_SHARED * (Splits::MOST + 1);

    using Ahead = typename Decode<T, HEAD_DIM>::Ahead;
    const Attention<T>& attention;
    Decode<T, HEAD_DIM> decode;
    int64_t sequences, tokens = 0, shared = 0, parts = 1, tasks = 0;

    // A step of no work, for its sizes.
    explicit DecodeStep(const Attention<T>& a) : attention(a), decode(a), sequences(0) {}

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
    int64_t slot_floats() const { return attention.heads * (decode.padded() + 2); }
    float* sums(float* slot, int64_t head) const { return slot + head * decode.padded(); }
    Partial* partials(float* slot) const { return reinterpret_cast<Partial*>(slot + attention.heads * decode.padded()); }

    // Where a thread is in the list of tasks, which it takes in order: `before` pieces and `slot` slots come before `sequence`.
    struct Cursor {
        int64_t sequence = 0, before = 0, slot = 0;
    };

    // What a thread works with: its queries, scores and weights, and two slots.
    struct Own {
        DecodeSpace<T> space;
        float *slot, *later;

        Own(const DecodeStep& step, char* memory) {
            int64_t group = step.attention.group, stretch = group * Decode<T, HEAD_DIM>::PADDED_STRETCH;
            take(memory, space.queries, group * step.decode.padded());
            take(memory, space.scores, stretch);
            take(memory, space.weights, stretch);
            take(memory, slot, step.slot_floats());
            take(memory, later, step.slot_floats());
            end = memory;
        }
        char* end;
    };

    // Task number `task`. `slots` are the team's.
    void run(int64_t task, Cursor& at, float* slots, const Own& own) const {
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
        bool is = is_shared(at.sequence);
        int64_t begin = splits.begin(is ? split : 0), end = splits.end(is ? split : 0);
        decode.first_keys(at.sequence, begin, end, from).ask_all();
        for (int64_t kv_head = from; kv_head < to; kv_head++) {
            Ahead then;
            if (kv_head + 1 < to) then = decode.first_keys(at.sequence, begin, end, kv_head + 1);
            if (is) one_split(at.sequence, splits, split, kv_head, slots + (at.slot + split) * slot_floats(), own.space, then);
            else all_splits(at.sequence, splits, kv_head, own, then);
        }
    }

    void one_split(int64_t s, const Splits& splits, int64_t split, int64_t kv_head, float* slot, const DecodeSpace<T>& space, const Ahead& then) const {
        int64_t head = kv_head * attention.group;
        decode.take_queries(attention.starts[s], kv_head, space.queries);
        decode.run(s, splits.begin(split), splits.end(split), kv_head, space, then, partials(slot) + head, sums(slot, head));
    }

    void all_splits(int64_t s, const Splits& splits, int64_t kv_head, const Own& own, const Ahead& then) const {
        int64_t head = kv_head * attention.group;
        for (int64_t split = 0; split < splits.count; split++) {
            bool more = split + 1 < splits.count;
            Ahead next = more ? decode.first_keys(s, splits.begin(split + 1), splits.end(split + 1), kv_head) : then;
            one_split(s, splits, split, kv_head, split ? own.later : own.slot, own.space, next);
            if (split == 0) continue;
            for (int64_t h = head; h < head + attention.group; h++)
                decode.merge(partials(own.slot)[h], sums(own.slot, h), partials(own.later)[h], sums(own.later, h));
        }
        for (int64_t h = head; h < head + attention.group; h++) decode.write(attention.starts[s], h, partials(own.slot)[h], sums(own.slot, h));
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

// Bytes of scratch: partial results that threads share, then what each thread has of its own for decoding and for prefill.
template <class T, int HEAD_DIM> struct ScratchPlan {
    using Step = DecodeStep<T, HEAD_DIM>;
    int64_t slots, own, prefill;

    explicit ScratchPlan(const Step& step) {
        slots = (Step::SLOTS * step.slot_floats() * 4 + 63) / 64 * 64;
        own = typename Step::Own(step, nullptr).end - static_cast<char*>(nullptr);
        Prefill<T>(step.attention, nullptr, prefill);
    }
    int64_t bytes(int threads) const { return slots + (own + prefill) * threads; }
};

template <int HEAD_DIM, class T> static int64_t scratch_bytes(const Attention<T>& attention, int threads) {
    return ScratchPlan<T, HEAD_DIM>(DecodeStep<T, HEAD_DIM>(attention)).bytes(threads);
}

template <int HEAD_DIM, class T> static void attend(const Attention<T>& attention, Team& team) {
    DecodeStep<T, HEAD_DIM> decode(attention, team.size);
    ScratchPlan<T, HEAD_DIM> plan(decode);
    float* slots = team.scratch<float>();
    char* memory = team.scratch<char>(plan.slots + team.index * (plan.own + plan.prefill));
    typename DecodeStep<T, HEAD_DIM>::Own own(decode, memory);
    PrefillStep<T> chunks(attention);
    int64_t bytes, prefill_tasks = chunks.tasks(), tasks = prefill_tasks + decode.tasks;
    Prefill<T> prefill(attention, memory + plan.own, bytes);
    typename DecodeStep<T, HEAD_DIM>::Cursor cursor;
    for (int64_t task; (task = team.next()) < tasks;) {
        if (task < prefill_tasks) chunks.run(task, prefill);
        else decode.run(task - prefill_tasks, cursor, slots, own);
    }
    if (!decode.shared) return;
    team.barrier();
    for (int64_t task; (task = team.next()) < decode.shared * attention.heads;) decode.merge(task, slots);
}

// Calls run(attention, size): size.value is the size of a head where kernels are made for it, else 0.
template <class Run> static void for_kinds(const Call& call, Run run) {
    auto for_sizes = [&](auto attention) {
        if (attention.head_dim == 64) run(attention, Count<64>{});
        else if (attention.head_dim == 128) run(attention, Count<128>{});
        else run(attention, Count<0>{});
    };
    if (call.input(0).type == F32) for_sizes(Attention<float>(call)); else for_sizes(Attention<bf16>(call));
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
        if (cache->layout != ROW_MAJOR || cache->strides[3] != 1) return "caches with features side by side";
        for (int i = 0; i < 4; i++)
            if (cache->shape[i] != k.shape[i] || cache->shape[i] < 1 || cache->strides[i] != k.strides[i]) return "caches of one shape and order";
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
    int64_t bytes = 0;
    for_kinds(call, [&](const auto& attention, auto size) { bytes = scratch_bytes<size.value>(attention, threads); });
    return bytes;
}
KERNEL(attention, "scale:number window:integer=0 softcap:number=0") {
    for_kinds(call, [&](const auto& attention, auto size) { attend<size.value>(attention, team); });
}
