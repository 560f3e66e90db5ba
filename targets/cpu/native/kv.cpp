// Writing keys and values into the paged KV cache [blocks, block_tokens, kv heads, D], alone and together with rope. Tokens or heads
// may be the outer dimension of a block in memory: strides say.
#include "rope.h"

static const char* check_caches(const Tensor& k, const Tensor& v, const Tensor& slots, const Tensor& k_cache, const Tensor& v_cache) {
    if (!is_float(k) || v.type != k.type || k_cache.type != k.type || v_cache.type != k.type)
        return "k, v and the caches of one type, float32 or bfloat16";
    if (k.rank != 3 || v.rank != 3 || k.strides[2] != 1 || v.strides[2] != 1) return "k and v [rows, heads, D], features side by side";
    for (int i = 0; i < 3; i++)
        if (k.shape[i] != v.shape[i]) return "k and v of one shape";
    if (slots.type != I64 || slots.rank != 1 || slots.strides[0] != 1 || slots.shape[0] != k.shape[0]) return "slot_mapping[rows] of int64";
    const Tensor* caches[] = {&k_cache, &v_cache};
    for (const Tensor* cache : caches) {
        if (cache->rank != 4 || cache->shape[2] != k.shape[1] || cache->shape[3] != k.shape[2]) return "caches [blocks, block_tokens, heads, D]";
        if (cache->layout != ROW_MAJOR || cache->strides[3] != 1) return "caches with features side by side";
        if (cache->shape[0] != k_cache.shape[0] || cache->shape[1] != k_cache.shape[1]) return "caches of one shape";
    }
    return nullptr;
}

// Where head `head` of token `slot` lies: tokens are numbered through all blocks.
template <class T> static T* cached(const Tensor& cache, int64_t slot, int64_t head) {
    return cache.at<T>(slot / cache.shape[1], slot % cache.shape[1], head);
}

template <class T> static void kv_write(const Call& call, Team& team) {
    const Tensor &k = call.input(0), &v = call.input(1), &slots = call.input(2);
    int64_t heads = k.shape[1], first, last, bytes = k.shape[2] * sizeof(T);
    team.share(k.shape[0] * heads, 1, first, last);
    for (int64_t at = first; at < last; at++) {
        int64_t row = at / heads, head = at % heads, slot = slots.at<int64_t>()[row];
        if (slot < 0) continue;  // a padded row
        copy_bytes(cached<T>(call.output(0), slot, head), k.at<T>(row, head), bytes);
        copy_bytes(cached<T>(call.output(1), slot, head), v.at<T>(row, head), bytes);
    }
}

CHECK(kv_write) {
    if (call.inputs != 3 || call.outputs != 2) return "(k, v, slot_mapping) -> k_cache, v_cache";
    return check_caches(call.input(0), call.input(1), call.input(2), call.output(0), call.output(1));
}
KERNEL(kv_write, "") {
    if (call.input(0).type == F32) kv_write<float>(call, team); else kv_write<bf16>(call, team);
}

template <class T, class Table> static void rope_kv_write(const Call& call, Team& team) {
    const Tensor &q = call.input(0), &k = call.input(1), &v = call.input(2), &cos = call.input(3), &sin = call.input(4);
    const Tensor &slots = call.input(5), &out = call.output(0);
    int64_t query_heads = q.shape[1], heads = query_heads + k.shape[1], first, last;
    team.share(q.shape[0] * heads, 1, first, last);
    for (int64_t at = first; at < last; at++) {
        int64_t row = at / heads, head = at % heads;
        const Table *c = cos.at<Table>(row), *s = sin.at<Table>(row);
        if (head < query_heads) {
            rotate_head(q.at<T>(row, head), c, s, out.at<T>(row, head), q.shape[2], cos.shape[1], call.flag(0));
            continue;
        }
        head -= query_heads;
        int64_t slot = slots.at<int64_t>()[row];
        if (slot < 0) continue;
        rotate_head(k.at<T>(row, head), c, s, cached<T>(call.output(1), slot, head), k.shape[2], cos.shape[1], call.flag(0));
        copy_bytes(cached<T>(call.output(2), slot, head), v.at<T>(row, head), v.shape[2] * sizeof(T));
    }
}

CHECK(rope_kv_write) {
    if (call.inputs != 6 || call.outputs != 3) return "(q, k, v, cos, sin, slot_mapping) -> out, k_cache, v_cache";
    const Tensor &q = call.input(0), &k = call.input(1), &out = call.output(0);
    if (const char* expected = check_rope_tables(q, call.input(3), call.input(4))) return expected;
    if (const char* expected = check_rope_tables(k, call.input(3), call.input(4))) return expected;
    if (out.type != q.type || out.rank != 3 || out.strides[2] != 1) return "out of the type of q, features side by side";
    for (int i = 0; i < 3; i++)
        if (out.shape[i] != q.shape[i]) return "q and out of one shape";
    return check_caches(k, call.input(2), call.input(5), call.output(1), call.output(2));
}
KERNEL(rope_kv_write, "interleaved:flag=0") {
    for_rope_types(call.input(0), call.input(3), [&](auto x, auto table) {
        rope_kv_write<decltype(x), decltype(table)>(call, team);
    });
}
