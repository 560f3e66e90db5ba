"""Causal attention as in attention.py, over keys and values kept as 8-bit floats.

Elements are read two at a time (float8.py): those in even columns of D make one half of a product, those in odd ones the other.
FACTOR is what elements must be multiplied by.
"""

import triton
import triton.language as tl

from .attention import _token_offsets
from .dependence import let_next_begin, wait_for_inputs
from .elementary import tanh
from .float8 import float8_pairs
from .key_shares import share_of_place


@triton.jit
def _queries(q, mask, columns, D: tl.constexpr, dtype: tl.constexpr):
    """Even and odd columns of rows of q, which `q` points at."""
    mask = mask[:, None] & (columns < D // 2)[None, :]
    even = tl.load(q[:, None] + 2 * columns[None, :], mask=mask, other=0.0)
    odd = tl.load(q[:, None] + 2 * columns[None, :] + 1, mask=mask, other=0.0)
    return even.to(dtype), odd.to(dtype)


@triton.jit
def _attend_block(
    even, odd, k_cache, v_cache, table, kv_head, start, stop, positions, best, total, evens, odds,
    KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr, MEANS: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Add the keys [start, start + BLOCK_T) below `stop` to a running softmax; values are added without their FACTOR."""
    offsets, columns = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D // 2)
    at = _token_offsets(table, kv_head, start, stop - 1, offsets, KV_HEADS, TOKENS, D // 2, BLOCK_T)
    tokens, inside = start + offsets, columns < D // 2
    if BLOCK_D == D:
        k = tl.load(k_cache + at[None, :] + columns[:, None])
    else:
        k = tl.load(k_cache + at[None, :] + columns[:, None], mask=inside[:, None], other=0)
    one, two = float8_pairs(k, MEANS)
    scores = tl.dot(even, one.to(even.dtype), input_precision="ieee")
    scores = tl.dot(odd, two.to(even.dtype), scores, input_precision="ieee")
    power: tl.constexpr = 1.4426950408889634 * (1.0 if SOFTCAP > 0.0 else SCALE * FACTOR)
    if SOFTCAP > 0.0:
        scores = tanh(scores * (SCALE * FACTOR / SOFTCAP)) * SOFTCAP
    if MASKED:
        distance = positions[:, None] - tokens[None, :]
        seen = (distance >= 0) & (tokens < stop)[None, :]
        if WINDOW > 0:
            seen = seen & (distance < WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, axis=1) * power)
    base = tl.where(higher == float("-inf"), 0.0, higher) if MASKED else higher
    weights = tl.exp2(scores * power - base[:, None])
    shrink = tl.exp2(best - base)
    total = total * shrink + tl.sum(weights, axis=1)
    if MASKED or BLOCK_D != D:
        v = tl.load(v_cache + at[:, None] + columns[None, :], mask=(tokens < stop)[:, None] & inside[None, :], other=0)
    else:
        v = tl.load(v_cache + at[:, None] + columns[None, :])
    one, two = float8_pairs(v, MEANS)
    weights = weights.to(even.dtype)
    evens = tl.dot(weights, one.to(even.dtype), evens * shrink[:, None], input_precision="ieee")
    odds = tl.dot(weights, two.to(even.dtype), odds * shrink[:, None], input_precision="ieee")
    return higher, total, evens, odds


@triton.jit
def _with_sink(best, total, evens, odds, sinks, heads, inside):
    """One more logit of each row's softmax, without a value."""
    sink = tl.load(sinks + heads, mask=inside, other=float("-inf")).to(tl.float32) * 1.4426950408889634
    higher = tl.maximum(best, sink)
    shrink = tl.exp2(best - higher)
    return total * shrink + tl.exp2(sink - higher), evens * shrink[:, None], odds * shrink[:, None]


@triton.jit
def _store(target, columns, even, odd, mask, D: tl.constexpr):
    """Even and odd columns to rows that `target` points at."""
    mask = mask[:, None] & (columns < D // 2)[None, :]
    tl.store(target[:, None] + 2 * columns[None, :], even.to(target.dtype.element_ty), mask=mask)
    tl.store(target[:, None] + 2 * columns[None, :] + 1, odd.to(target.dtype.element_ty), mask=mask)


@triton.jit
def split(
    q, k_cache, v_cache, lengths, tables, counts, sinks, out, partial, weight, goal,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, TABLE: tl.constexpr, D: tl.constexpr,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    COUNT: tl.constexpr, SEQUENCES: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, MEANS: tl.constexpr, FACTOR: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """As attention.split."""
    place, kv_head = tl.program_id(0), tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    dtype: tl.constexpr = q.dtype.element_ty if MEANS == "bits" else tl.float16
    let_next_begin(DEPENDENT)
    sequence, length, start, stop, shares = share_of_place(
        place, lengths, tl.load(counts + COUNT), goal, WINDOW, min(TOKENS, BLOCK_T), BLOCK_T, SEQUENCES
    )  # fmt: skip
    wait_for_inputs(DEPENDENT)
    of_group = tl.arange(0, BLOCK_H)
    heads, inside = kv_head * group + of_group, of_group < group
    columns = tl.arange(0, BLOCK_D // 2)
    row = sequence.to(tl.int64)
    even, odd = _queries(q + row * Q_ROW + heads * Q_HEAD, inside, columns, D, dtype)
    positions = tl.zeros((BLOCK_H,), tl.int32) + (length - 1)
    best = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    evens = tl.zeros((BLOCK_H, BLOCK_D // 2), tl.float32)
    odds = tl.zeros((BLOCK_H, BLOCK_D // 2), tl.float32)
    keys, values = k_cache.to(tl.pointer_type(tl.int16)), v_cache.to(tl.pointer_type(tl.int16))
    table = tables + row * TABLE
    for token in tl.range(start, stop, BLOCK_T, num_stages=STAGES):
        best, total, evens, odds = _attend_block(
            even, odd, keys, values, table, kv_head, token, stop, positions, best, total, evens, odds,
            KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, True, MEANS, FACTOR,
        )  # fmt: skip
    if shares == 1:
        if sinks is not None:
            total, evens, odds = _with_sink(best, total, evens, odds, sinks, heads, inside)
        target = out + (row * HEADS + heads) * D
        _store(target, columns, evens * FACTOR / total[:, None], odds * FACTOR / total[:, None], inside, D)
    elif shares > 1:
        at_place = place * HEADS + heads
        over = FACTOR / total[:, None]
        _store(partial + at_place * D, columns, evens * over, odds * over, inside, D)
        tl.store(weight + at_place, best + tl.log2(total), mask=inside)


@triton.jit
def chunks(
    q, k_cache, v_cache, starts, lengths, tables, counts, sinks, out,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, TOKENS: tl.constexpr, TABLE: tl.constexpr, D: tl.constexpr,
    Q_ROW: tl.constexpr, Q_HEAD: tl.constexpr,
    SCALE: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    SEQUENCES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, MEANS: tl.constexpr, FACTOR: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """As attention.chunks."""
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_Q
    kv_head = tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    dtype: tl.constexpr = q.dtype.element_ty if MEANS == "bits" else tl.float16
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
    head, columns = kv_head * group + of_group, tl.arange(0, BLOCK_D // 2)
    usable = (row < last_row) & (of_group < group)
    wide = row.to(tl.int64)
    even, odd = _queries(q + wide * Q_ROW + head * Q_HEAD, usable, columns, D, dtype)
    keys, values = k_cache.to(tl.pointer_type(tl.int16)), v_cache.to(tl.pointer_type(tl.int16))
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
        evens = tl.zeros((BLOCK_Q * BLOCK_H, BLOCK_D // 2), tl.float32)
        odds = tl.zeros((BLOCK_Q * BLOCK_H, BLOCK_D // 2), tl.float32)
        if WINDOW > 0:
            low = tl.maximum(lowest - (WINDOW - 1), 0) // page * page
            seen_by_all = low
        else:
            low = 0
            # rows of another sequence may come before this one's: what they get is not kept
            seen_by_all = (lowest + 1) // BLOCK_T * BLOCK_T
        for token in tl.range(low, seen_by_all, BLOCK_T, num_stages=STAGES):
            best, total, evens, odds = _attend_block(
                even, odd, keys, values, table, kv_head, token, stop, positions, best, total, evens, odds,
                KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, False, MEANS, FACTOR,
            )  # fmt: skip
        for token in tl.range(seen_by_all, stop, BLOCK_T, num_stages=STAGES):
            best, total, evens, odds = _attend_block(
                even, odd, keys, values, table, kv_head, token, stop, positions, best, total, evens, odds,
                KV_HEADS, TOKENS, D, BLOCK_D, BLOCK_T, SCALE, SOFTCAP, WINDOW, True, MEANS, FACTOR,
            )  # fmt: skip
        if sinks is not None:
            total, evens, odds = _with_sink(best, total, evens, odds, sinks, head, of_group < group)
        over = FACTOR / total[:, None]
        mine = usable & (row >= begin) & (row < end)
        _store(out + (wide * HEADS + head) * D, columns, evens * over, odds * over, mine, D)
