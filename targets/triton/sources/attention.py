"""Causal attention of grouped queries over paged keys and values [blocks, KV_HEADS, TOKENS, D].

The heads of a kv head go through a tile together: row r of a tile is head r % BLOCK_H of query r // BLOCK_H. Scores are kept in
powers of two. A block of keys lies in one block of the cache (TOKENS is a multiple of BLOCK_T) or in several.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .elementary import tanh
from .key_shares import places_of_sequence, share_of_place


@triton.jit
def _token_offsets(
    table, kv_head, start, last, offsets, KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr
):
    """Where a head's tokens from `start` on begin, for tokens up to `last`; those beyond are taken from there."""
    if TOKENS % BLOCK_T == 0:
        block = tl.load(table + start // TOKENS).to(tl.int64)
        return (block * KV_HEADS + kv_head) * (TOKENS * D) + (start % TOKENS + offsets) * D
    tokens = tl.minimum(start + offsets, last)
    blocks = tl.load(table + tokens // TOKENS).to(tl.int64)
    return (blocks * KV_HEADS + kv_head) * (TOKENS * D) + (tokens % TOKENS) * D


@triton.jit
def _add_block(
    q, k, v, tokens, stop, positions, best, total, sums,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add keys k[D, T] and values v[T, D] below `stop` to a running softmax: largest score, sum of weights, weighted values."""
    scores = tl.dot(q, k, input_precision="ieee")
    power: tl.constexpr = 1.4426950408889634 * (1.0 if SOFTCAP > 0.0 else SCALE)
    if SOFTCAP > 0.0:
        scores = tanh(scores * (SCALE / SOFTCAP)) * SOFTCAP
    if MASKED:
        distance = positions[:, None] - tokens[None, :]
        seen = (distance >= 0) & (tokens < stop)[None, :]
        if WINDOW > 0:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1) * power)
    # a row that has seen nothing yet has no largest score: minus infinity less itself is no number
    base = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
    weights = tl.exp2(scores * power - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
    return higher, total, sums


@triton.jit
def _attend_block(
    q, k_cache, v_cache, table, kv_head, start, stop, positions, best, total, sums,
    KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Add the keys [start, start + BLOCK_T) below `stop`, of a sequence with the block table `table`."""
    offsets, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
    at = _token_offsets(table, kv_head, start, stop - 1, offsets, KV_HEADS, TOKENS, D, BLOCK_T)
    tokens = start + offsets
    if BLOCK_D == D:
        k = tl.load(k_cache + at[None, :] + columns[:, None])
    else:
        k = tl.load(k_cache + at[None, :] + columns[:, None], mask=(columns < D)[:, None], other=0.0)
    # beyond the last token the cache may hold anything, and 0 times anything need not be 0
    mask = (tokens < stop)[:, None]
    if MASKED or BLOCK_D != D:
        v = tl.load(v_cache + at[:, None] + columns[None, :], mask=mask & (columns < D)[None, :], other=0.0)
    else:
        v = tl.load(v_cache + at[:, None] + columns[None, :])
    return _add_block(q, k, v, tokens, stop, positions, best, total, sums, SCALE, SOFTCAP, WINDOW, MASKED)


@triton.jit
def _masked_block(
    k_cache, v_cache, at, tokens, stop, k_otherwise, v_otherwise, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Keys [D, T] and values [T, D] of tokens below `stop`, which begin `at`; what is given otherwise."""
    columns = tl.arange(0, BLOCK_D)
    there, inside = tokens < stop, columns < D
    k = tl.load(k_cache + at[None, :] + columns[:, None], mask=there[None, :] & inside[:, None], other=k_otherwise)
    v = tl.load(v_cache + at[:, None] + columns[None, :], mask=there[:, None] & inside[None, :], other=v_otherwise)
    return k, v


@triton.jit
def _attend_described_block(
    q, keys, values, table, kv_head, start, stop, positions, best, total, sums,
    KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_T: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The same where `keys` and `values` are descriptors of the caches as [anything, D]; a tile lies in one cache block."""
    row = (tl.load(table + start // TOKENS) * KV_HEADS + kv_head) * TOKENS + start % TOKENS
    tokens = start + tl.arange(0, BLOCK_T)
    k, v = keys.load([row, 0]).T, values.load([row, 0])
    if MASKED:
        v = tl.where((tokens < stop)[:, None], v, 0.0)
    return _add_block(q, k, v, tokens, stop, positions, best, total, sums, SCALE, SOFTCAP, WINDOW, MASKED)


@triton.jit
def _attend_two_described_blocks(
    q, keys, values, table, kv_head, start, best, total, sums,
    KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, BLOCK_T: tl.constexpr, SCALE: tl.constexpr, SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Two tiles that every row sees whole, one after the other: the running softmax is brought up to date once."""
    first = (tl.load(table + start // TOKENS) * KV_HEADS + kv_head) * TOKENS + start % TOKENS
    later = start + BLOCK_T
    second = (tl.load(table + later // TOKENS) * KV_HEADS + kv_head) * TOKENS + later % TOKENS
    one = tl.dot(q, keys.load([first, 0]).T, input_precision="ieee")
    two = tl.dot(q, keys.load([second, 0]).T, input_precision="ieee")
    power: tl.constexpr = 1.4426950408889634 * (1.0 if SOFTCAP > 0.0 else SCALE)
    if SOFTCAP > 0.0:
        one = tanh(one * (SCALE / SOFTCAP)) * SOFTCAP
        two = tanh(two * (SCALE / SOFTCAP)) * SOFTCAP
    higher = tl.maximum(best, tl.max(tl.maximum(one, two), axis=1) * power)
    one = tl.exp2(one * power - higher[:, None])
    two = tl.exp2(two * power - higher[:, None])
    shrink = tl.exp2(best - higher)
    total = total * shrink + tl.sum(one + two, axis=1)
    v = values.load([first, 0])
    sums = tl.dot(one.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
    v = values.load([second, 0])
    sums = tl.dot(two.to(v.dtype), v, sums, input_precision="ieee")
    return higher, total, sums


@triton.jit
def _with_sink(best, total, sums, sinks, heads, inside):
    """One more logit of each row's softmax, without a value."""
    sink = tl.load(sinks + heads, mask=inside, other=float("-inf")).to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(best, sink)
    shrink = tl.exp2(best - higher)
    return total * shrink + tl.exp2(sink - higher), sums * shrink[:, None]


@triton.jit
def split(
    q, k_cache, v_cache, lengths, tables, counts, sinks, out, partial, weight, goal,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, TABLE: tl.constexpr, D: tl.constexpr,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    COUNT: tl.constexpr, SEQUENCES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, AHEAD: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sequences of one row each, row and sequence counted alike: a share of a sequence's keys for each program.

    There are counts[COUNT] sequences, at most SEQUENCES, and about `goal` shares in all (key_shares.py). Results go to
    partial[places, HEADS, D] and weight[places, HEADS] (the power of two that stands for the share), those of a sequence with one
    share to out. Grid: places, kv heads.

    AHEAD: the first block of a share is asked for while the kernel ahead still runs, which writes the newest token alone; the
    share that this belongs to waits.
    """
    place, kv_head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    let_next_begin(DEPENDENT)
    page: tl.constexpr = min(TOKENS, BLOCK_T)
    # no kernel writes the step's inputs
    sequence, length, start, stop, shares = share_of_place(
        place, lengths, tl.load(counts + COUNT), goal, WINDOW, page, BLOCK_T, SEQUENCES
    )  # fmt: skip
    row = sequence.to(tl.int64)
    table = tables + row * TABLE
    if AHEAD:
        # a share without keys may begin beyond the table
        last = tl.maximum(stop - 1, 0)
        begin = tl.minimum(start, last // page * page)
        at = _token_offsets(table, kv_head, begin, last, tl.arange(0, BLOCK_T), KV_HEADS, TOKENS, D, BLOCK_T)
        tokens = start + tl.arange(0, BLOCK_T)
        early = tl.where(stop < length, stop, 0)
        k, v = _masked_block(k_cache, v_cache, at, tokens, early, 0.0, 0.0, D, BLOCK_D)
    wait_for_inputs(DEPENDENT)
    of_group = tl.arange(0, BLOCK_H)
    heads, inside = kv_head * group + of_group, of_group < group
    columns = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (columns < D)[None, :]
    query = tl.load(q + row * Q_ROW + heads[:, None] * Q_HEAD + columns[None, :], mask=mask, other=0.0)
    positions = tl.zeros((BLOCK_H,), tl.int32) + (length - 1)
    best = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    sums = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)
    if AHEAD:
        k, v = _masked_block(k_cache, v_cache, at, tokens, stop - early, k, v, D, BLOCK_D)
        if start < stop:
            best, total, sums = _add_block(
                query, k, v, tokens, stop, positions, best, total, sums, SCALE, SOFTCAP, WINDOW, True
            )  # fmt: skip
            start += BLOCK_T
    for token in tl.range(start, stop, BLOCK_T, num_stages=STAGES):
        best, total, sums = _attend_block(
            query, k_cache, v_cache, table, kv_head, token, stop, positions, best, total, sums,
            KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, True,
        )  # fmt: skip
    if shares == 1:
        if sinks is not None:
            total, sums = _with_sink(best, total, sums, sinks, heads, inside)
        result = sums / total[:, None]
        tl.store(out + (row * HEADS + heads[:, None]) * D + columns[None, :], result.to(out.dtype.element_ty), mask=mask)
    elif shares > 1:
        at_place = place * HEADS + heads
        tl.store(partial + at_place[:, None] * D + columns[None, :], sums / total[:, None], mask=mask)
        tl.store(weight + at_place, best + tl.log2(total), mask=inside)


@triton.jit
def _put_together(
    partial, weight, out, sink, first, count, stride,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The result of a head from `count` shares, whose weights are `first`, `first` + `stride`, ...; to out[D]."""
    columns, of_block = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_S)
    # a share without keys has power minus infinity, and so has none so far: the least finite number stands in
    best = -1e38
    total = 0.0
    sums = tl.zeros((BLOCK_D,), tl.float32)
    if sink is not None:
        best = tl.load(sink).to(tl.float32) * 1.4426950408889634
        total = 1.0
    for start in range(0, count, BLOCK_S):
        inside = start + of_block < count
        place = first + (start + of_block) * stride
        power = tl.load(weight + place, mask=inside, other=float("-inf"))
        # what a share without keys left may be no number
        mask = (power > float("-inf"))[:, None] & (columns < D)[None, :]
        values = tl.load(partial + place[:, None] * D + columns[None, :], mask=mask, other=0.0)
        higher = tl.maximum(best, tl.max(power, axis=0))
        share, shrink = tl.exp2(power - higher), tl.exp2(best - higher)
        total = total * shrink + tl.sum(share, axis=0)
        sums = sums * shrink + tl.sum(values * share[:, None], axis=0)
        best = higher
    tl.store(out + columns, (sums / total).to(out.dtype.element_ty), mask=columns < D)


@triton.jit
def merge(
    partial, weight, lengths, counts, sinks, out, goal,
    HEADS: tl.constexpr, D: tl.constexpr, WINDOW: tl.constexpr, COUNT: tl.constexpr, SEQUENCES: tl.constexpr,
    PAGE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Put the shares of `split` together, of sequences that have several. Grid: sequences, heads."""
    row, head = tl.program_id(0), tl.program_id(1)
    let_next_begin(DEPENDENT)
    first, count = places_of_sequence(row, lengths, tl.load(counts + COUNT), goal, WINDOW, PAGE, BLOCK_T, SEQUENCES)
    wait_for_inputs(DEPENDENT)
    if count > 1:
        target = out + (row.to(tl.int64) * HEADS + head) * D
        sink = None if sinks is None else sinks + head
        _put_together(partial, weight, target, sink, first * HEADS + head, count, HEADS, D, BLOCK_S, BLOCK_D)


@triton.jit
def merge_rows(
    partial, weight, counts, sinks, out, splits,
    HEADS: tl.constexpr, D: tl.constexpr, DECODING: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Put partial[R, HEADS, splits, D] together by weight[R, HEADS, splits]: of all rows, or without DECODING of those of chunks.

    Grid: rows, heads.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    let_next_begin(DEPENDENT)
    there = row < tl.load(counts)
    if not DECODING:
        there = there & (row >= tl.load(counts + 1))
    wait_for_inputs(DEPENDENT)
    if there:
        place = row.to(tl.int64) * HEADS + head
        sink = None if sinks is None else sinks + head
        _put_together(partial, weight, out + place * D, sink, place * splits, splits, 1, D, BLOCK_S, BLOCK_D)


@triton.jit
def chunks(
    q, k_cache, v_cache, starts, lengths, tables, counts, sinks, out, partial, weight, splits,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, TABLE: tl.constexpr, D: tl.constexpr,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    SEQUENCES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, DESCRIBED: tl.constexpr, WHOLE: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Sequences of several rows, those from counts[1] on: a program does BLOCK_Q rows of the step, whatever sequences they have.

    Results of a share of the keys go to partial[R, HEADS, splits, D] and weight[R, HEADS, splits] (the power of two that stands
    for the share); with WHOLE there is one share, and they go to out.

    Grid: blocks of rows, kv heads, splits. SEQUENCES is a power of two that holds them all. DESCRIBED: keys and values are copied
    by descriptors; then TOKENS is a multiple of BLOCK_T, and D is BLOCK_D.
    """
    # the last rows see the most keys: begin with them
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    kv_head = tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    rows, decoding, sequences = tl.load(counts), tl.load(counts + 1), tl.load(counts + 2)
    last_row = tl.minimum(first_row + BLOCK_Q, rows)
    numbers = tl.arange(0, SEQUENCES)
    ends = tl.load(starts + 1 + numbers, mask=numbers < sequences, other=2147483647)
    begins = tl.load(starts + numbers, mask=numbers < sequences, other=2147483647)
    first_sequence = tl.maximum(tl.sum((ends <= first_row).to(tl.int32)), decoding)
    last_sequence = tl.sum((begins < last_row).to(tl.int32))
    flat = tl.arange(0, BLOCK_Q * BLOCK_H)
    row, of_group = first_row + flat // BLOCK_H, flat % BLOCK_H
    head, columns = kv_head * group + of_group, tl.arange(0, BLOCK_D)
    usable = (row < last_row) & (of_group < group)
    wide = row.to(tl.int64)
    query = tl.load(
        q + (wide * Q_ROW + head * Q_HEAD)[:, None] + columns[None, :], mask=usable[:, None] & (columns < D)[None, :], other=0.0
    )
    if DESCRIBED:
        keys = tl.make_tensor_descriptor(k_cache, [2147483647, D], [D, 1], [BLOCK_T, D])
        values = tl.make_tensor_descriptor(v_cache, [2147483647, D], [D, 1], [BLOCK_T, D])
    page: tl.constexpr = min(TOKENS, BLOCK_T)
    for sequence in range(first_sequence, last_sequence):
        begin, end, length = tl.load(starts + sequence), tl.load(starts + sequence + 1), tl.load(lengths + sequence)
        table = tables + sequence * TABLE
        shift = length - end
        positions = row + shift
        lowest = tl.maximum(first_row, begin) + shift
        stop = tl.minimum(last_row, end) + shift
        best = tl.full((BLOCK_Q * BLOCK_H,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_Q * BLOCK_H,), tl.float32)
        sums = tl.zeros((BLOCK_Q * BLOCK_H, BLOCK_D), tl.float32)
        if WINDOW > 0:
            low = tl.maximum(lowest - (WINDOW - 1), 0) // page * page
            seen_by_all = low
        else:
            low = 0
            # rows of another sequence may come before this one's: what they get is not kept
            seen_by_all = (lowest + 1) // BLOCK_T * BLOCK_T
        if not WHOLE:
            size = tl.cdiv(tl.cdiv(stop - low, BLOCK_T), splits) * BLOCK_T
            low += tl.program_id(2) * size
            stop = tl.minimum(stop, low + size)
            seen_by_all = tl.maximum(tl.minimum(seen_by_all, low + (stop - low) // BLOCK_T * BLOCK_T), low)
        if DESCRIBED:
            in_pairs = low + (seen_by_all - low) // (2 * BLOCK_T) * (2 * BLOCK_T)
            for token in tl.range(low, in_pairs, 2 * BLOCK_T, num_stages=STAGES):
                best, total, sums = _attend_two_described_blocks(
                    query, keys, values, table, kv_head, token, best, total, sums, KV_HEADS, TOKENS, BLOCK_T, SCALE, SOFTCAP
                )
            low = in_pairs
        for token in tl.range(low, seen_by_all, BLOCK_T, num_stages=STAGES):
            if DESCRIBED:
                best, total, sums = _attend_described_block(
                    query, keys, values, table, kv_head, token, stop, positions, best, total, sums,
                    KV_HEADS, TOKENS, BLOCK_T, SCALE, SOFTCAP, WINDOW, False,
                )  # fmt: skip
            else:
                best, total, sums = _attend_block(
                    query, k_cache, v_cache, table, kv_head, token, stop, positions, best, total, sums,
                    KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, False,
                )  # fmt: skip
        for token in tl.range(seen_by_all, stop, BLOCK_T, num_stages=STAGES):
            if DESCRIBED:
                best, total, sums = _attend_described_block(
                    query, keys, values, table, kv_head, token, stop, positions, best, total, sums,
                    KV_HEADS, TOKENS, BLOCK_T, SCALE, SOFTCAP, WINDOW, True,
                )  # fmt: skip
            else:
                best, total, sums = _attend_block(
                    query, k_cache, v_cache, table, kv_head, token, stop, positions, best, total, sums,
                    KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, True,
                )  # fmt: skip
        mine = usable & (row >= begin) & (row < end)
        mask = mine[:, None] & (columns < D)[None, :]
        if WHOLE:
            if sinks is not None:
                total, sums = _with_sink(best, total, sums, sinks, head, of_group < group)
            result = (sums / total[:, None]).to(out.dtype.element_ty)
            tl.store(out + ((wide * HEADS + head) * D)[:, None] + columns[None, :], result, mask=mask)
        else:
            place = (wide * HEADS + head) * splits + tl.program_id(2)
            # a row may see no key of a share
            tl.store(partial + place[:, None] * D + columns[None, :], sums / tl.where(total > 0, total, 1.0)[:, None], mask=mask)
            tl.store(weight + place, best + tl.log2(total), mask=mine)
