"""Latent attention (DeepSeek-V2, arXiv:2405.04434) over a paged cache [blocks, TOKENS, R + D]: a token's latent, then its key.

All heads attend to the cached rows themselves: queries are taken into latent space first, results out of it afterwards.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def write(
    latent, key, slot_mapping, cache,
    R: tl.constexpr, D: tl.constexpr, LATENT_ROW: tl.constexpr, KEY_ROW: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Copy a row's latent and key into its slot. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    of_latent, of_key = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    slot = tl.load(slot_mapping + row)
    # a padded row has no slot, and writes nothing
    target = cache + tl.maximum(slot, 0) * (R + D)
    values = tl.load(latent + row * LATENT_ROW + of_latent, mask=of_latent < R)
    tl.store(target + of_latent, values, mask=of_latent < tl.where(slot < 0, 0, R))
    values = tl.load(key + row * KEY_ROW + of_key, mask=of_key < D)
    tl.store(target + R + of_key, values, mask=of_key < tl.where(slot < 0, 0, D))


@triton.jit
def by_head(
    x, weight, out, rows,
    N: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr,
    W_HEAD: tl.constexpr, W_N: tl.constexpr, W_K: tl.constexpr, W_FIRST: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[R, heads, N] = x[R, heads, K] times the head's own weight, whose element (n, k) is W_FIRST + n W_N + k W_K into it.

    Grid: blocks of N, blocks of rows, heads.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    head, heads = tl.program_id(2), tl.num_programs(2)
    inside, present, inner = columns < N, at < rows, tl.arange(0, BLOCK_K)
    weights = weight + head * W_HEAD + W_FIRST + columns[None, :] * W_N + inner[:, None] * W_K
    values = x + at[:, None] * X_ROW + head * X_HEAD + inner[None, :]
    sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    for start in range(0, K, BLOCK_K):
        left = start + inner < K
        w = tl.load(weights + start * W_K, mask=inside[None, :] & left[:, None], other=0.0)
        v = tl.load(values + start, mask=present[:, None] & left[None, :], other=0.0)
        sums = tl.dot(v, w, sums, input_precision="ieee")
    target = out + (at[:, None] * heads + head) * N + columns[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[:, None] & inside[None, :])


@triton.jit
def attend(
    queries, turned, cache, starts, lengths, tables, counts, out, partial, weight, splits,
    HEADS: tl.constexpr, R: tl.constexpr, D: tl.constexpr, TURNED_ROW: tl.constexpr, TURNED_HEAD: tl.constexpr,
    TOKENS: tl.constexpr, TABLE: tl.constexpr, SCALE: tl.constexpr, SEQUENCES: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """Heads of one row against a share of the keys it sees: queries[R, HEADS, R] in latent space and turned[R, HEADS, D].

    Results in latent space go to partial[R, HEADS, splits, R] and weight[R, HEADS, splits] (the power of two that stands for the
    share); with WHOLE there is one share, and they go to out[R, HEADS, R]. Grid: rows, blocks of heads, splits.
    """
    row, share = tl.program_id(0).to(tl.int64), tl.program_id(2)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    rows, sequences = tl.load(counts), tl.load(counts + 2)
    if row >= rows:
        return
    numbers = tl.arange(0, SEQUENCES)
    ends = tl.load(starts + 1 + numbers, mask=numbers < sequences, other=2147483647)
    sequence = tl.sum((ends <= row).to(tl.int32), axis=0)
    length = tl.load(lengths + sequence) - (tl.load(starts + sequence + 1) - 1 - row.to(tl.int32))
    blocks = tl.cdiv(tl.cdiv(length, BLOCK_T), splits)
    first = share * blocks * BLOCK_T
    stop = tl.minimum(first + blocks * BLOCK_T, length)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    of_latent, of_key, offsets = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    latent_mask = (heads < HEADS)[:, None] & (of_latent < R)[None, :]
    key_mask = (heads < HEADS)[:, None] & (of_key < D)[None, :]
    q = tl.load(queries + (row * HEADS + heads[:, None]) * R + of_latent[None, :], mask=latent_mask, other=0.0)
    q_key = turned + row * TURNED_ROW + heads[:, None] * TURNED_HEAD + of_key[None, :]
    q_key = tl.load(q_key, mask=key_mask, other=0.0)
    best = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    sums = tl.zeros((BLOCK_H, BLOCK_R), tl.float32)
    table = tables + sequence * TABLE
    for start in tl.range(first, stop, BLOCK_T, num_stages=STAGES):
        tokens = start + offsets
        inside = tokens < stop
        kept = tl.minimum(tokens, stop - 1)
        at = (tl.load(table + kept // TOKENS).to(tl.int64) * TOKENS + kept % TOKENS) * (R + D)
        latents = tl.load(cache + at[:, None] + of_latent[None, :], mask=(of_latent < R)[None, :], other=0.0)
        keys = tl.load(cache + at[None, :] + R + of_key[:, None], mask=(of_key < D)[:, None], other=0.0)
        scores = tl.dot(q, latents.T, input_precision="ieee")
        scores = tl.dot(q_key, keys, scores, input_precision="ieee") * (SCALE * 1.4426950408889634)
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(best - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(latents.dtype), latents, sums * shrink[:, None], input_precision="ieee")
        best = higher
    if WHOLE:
        result = sums / total[:, None]
        tl.store(out + (row * HEADS + heads[:, None]) * R + of_latent[None, :], result.to(out.dtype.element_ty), mask=latent_mask)
    else:
        place = (row * HEADS + heads) * splits + share
        # a share without keys has weight 0 and no result
        result = sums / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(partial + place[:, None] * R + of_latent[None, :], result, mask=latent_mask)
        tl.store(weight + place, best + tl.log2(total), mask=heads < HEADS)
