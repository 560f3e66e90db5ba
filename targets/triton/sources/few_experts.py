"""Experts of a few rows: every pair of row and expert by itself, weights stream through registers; nothing is put in order.

A pair p of K for each row is of row p // K. Pairs whose expert is none of the E add nothing: rows that are padding may have gone
anywhere.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .mixture import gated_pair


@triton.jit
def gate_up(
    x, weight, bias, indices, out,
    E: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """activation(gate) * up of each pair, into out[pairs, INNER]; weight[E, 2 INNER, H], bias[E, 2 INNER] or None.

    A tile has half of BLOCK_N columns of both halves. Grid: blocks of half as many columns, pairs.
    """
    OWN: tl.constexpr = BLOCK_N // 2
    WHOLE: tl.constexpr = H % BLOCK_K == 0
    local, inner = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    columns, pair = tl.program_id(0) * OWN + local % OWN, tl.program_id(1)
    inside = columns < INNER
    source = x + (pair // K).to(tl.int64) * X_ROW + inner
    wait_for_inputs(DEPENDENT)
    # not before: `down`, which comes next, reads then what kernels ahead of this one wrote
    let_next_begin(DEPENDENT)
    expert = tl.load(indices + pair).to(tl.int64)
    if (expert < 0) | (expert >= E):
        return
    of_expert = expert * (2 * INNER) + columns + local // OWN * INNER
    weights = weight + of_expert[:, None] * H + inner[None, :]
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.range(0, H, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < H)
        w = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        values = tl.load(source + start, mask=left, other=0.0)
        sums += w.to(tl.float32) * values.to(tl.float32)[None, :]
    halves = tl.sum(sums, axis=1)
    if bias is not None:
        halves += tl.load(bias + of_expert, mask=inside, other=0.0).to(tl.float32)
    gate, up = tl.split(halves.reshape(2, OWN).permute(1, 0))
    made = gated_pair(gate, up, out.dtype.element_ty, ACTIVATION, ALPHA, LIMIT)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    tl.store(out + pair.to(tl.int64) * INNER + own, made.to(out.dtype.element_ty), mask=own < INNER)


@triton.jit
def down(
    x, weight, bias, indices, factors, residual, out,
    E: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, K: tl.constexpr, RESIDUAL_ROW: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """out[row] = the sum over the row's pairs of factor * what the expert makes of x[pairs, INNER], in f32; weight[E, H, INNER],
    bias[E, H] or None. With a residual, which may be None, that is rounded, added to, and rounded again. Grid: blocks of H, rows.

    Comes after `gate_up` alone, which lets it begin when all kernels ahead of itself have ended: which experts there are is known
    by then, and their first weights are asked for while `gate_up` runs.
    """
    WHOLE: tl.constexpr = INNER % BLOCK_K == 0
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1).to(tl.int64)
    places, inner = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_K)
    inside = columns < H
    let_next_begin(DEPENDENT)
    # not from a cache of the multiprocessor, where an earlier layer's may be
    experts = tl.load(indices + row * K + places, mask=places < K, other=-1, cache_modifier=".cg").to(tl.int64)
    there = (experts >= 0) & (experts < E)
    of_experts = tl.where(there, experts, 0)[:, None] * H + columns[None, :]
    both = there[:, None] & inside[None, :]
    weights = weight + of_experts[:, :, None] * INNER + inner[None, None, :]
    left = WHOLE | (inner < INNER)
    first = tl.load(weights, mask=both[:, :, None] & left[None, None, :], other=0.0)
    wait_for_inputs(DEPENDENT)
    factor = tl.load(factors + row * K + places, mask=there, other=0.0).to(tl.float32)
    source = x + (row * K + places)[:, None] * INNER + inner[None, :]
    values = tl.load(source, mask=there[:, None] & left[None, :], other=0.0)
    sums = first.to(tl.float32) * values.to(tl.float32)[:, None, :]
    for start in tl.range(BLOCK_K, INNER, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < INNER)
        w = tl.load(weights + start, mask=both[:, :, None] & left[None, None, :], other=0.0)
        values = tl.load(source + start, mask=there[:, None] & left[None, :], other=0.0)
        sums += w.to(tl.float32) * values.to(tl.float32)[:, None, :]
    results = tl.sum(sums, axis=2)
    if bias is not None:
        results += tl.load(bias + of_experts, mask=both, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    mixed = tl.sum(results.to(dtype).to(tl.float32) * factor[:, None], axis=0).to(dtype)
    if residual is not None:
        before = tl.load(residual + row * RESIDUAL_ROW + columns, mask=inside, other=0.0).to(tl.float32)
        mixed = (before + mixed.to(tl.float32)).to(dtype)
    tl.store(out + row * H + columns, mixed, mask=inside)
