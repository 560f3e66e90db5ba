"""Experts whose weights are in planes of blocks (codes.py), over blocks of pairs of row and expert as in mixture.py."""

import triton
import triton.language as tl

from .codes import parts_of, planes, product, size_of
from .dependence import let_next_begin, wait_for_inputs
from .mixture import gated_pair


@triton.jit
def gate_up(
    x, weight, bias, order, owners, out,
    E: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr, K: tl.constexpr, X_ROW: tl.constexpr,
    ACTIVATION: tl.constexpr, ALPHA: tl.constexpr, LIMIT: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORMAT: tl.constexpr, CHUNK: tl.constexpr,
    PAIRED: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """As mixture.gate_up."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    expert = tl.load(owners + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(order + block * BLOCK_R + tl.arange(0, BLOCK_R))
    present, inside = pairs >= 0, columns < INNER
    source = x + (tl.maximum(pairs, 0) // K).to(tl.int64) * X_ROW
    codes, scales, minimums = planes(weight, tl.full((), E * 2 * INNER, tl.int64), H, FORMAT)
    of_row: tl.constexpr = H // parts_of(FORMAT)
    of_scales: tl.constexpr = H // size_of(FORMAT)
    gates = expert * (2 * INNER) + tl.minimum(columns, INNER - 1)
    ups = gates + INNER
    whole: tl.constexpr = H % BLOCK_K == 0
    nothing = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    gate = product(
        source, present, codes + gates * of_row, scales + gates * of_scales, minimums + gates * of_scales, 0, H, H, nothing,
        BLOCK_K, FORMAT, CHUNK, PAIRED, whole, STAGES,
    )  # fmt: skip
    up = product(
        source, present, codes + ups * of_row, scales + ups * of_scales, minimums + ups * of_scales, 0, H, H, nothing,
        BLOCK_K, FORMAT, CHUNK, PAIRED, whole, STAGES,
    )  # fmt: skip
    dtype = out.dtype.element_ty
    if bias is not None:
        start = bias + expert * (2 * INNER) + columns
        gate += tl.load(start, mask=inside, other=0.0).to(tl.float32)[:, None]
        up += tl.load(start + INNER, mask=inside, other=0.0).to(tl.float32)[:, None]
    made = gated_pair(gate, up, dtype, ACTIVATION, ALPHA, LIMIT)
    target = out + tl.maximum(pairs, 0).to(tl.int64)[None, :] * INNER + columns[:, None]
    tl.store(target, made.to(dtype), mask=present[None, :] & inside[:, None])


@triton.jit
def down(
    x, weight, bias, order, owners, out,
    E: tl.constexpr, INNER: tl.constexpr, H: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORMAT: tl.constexpr, CHUNK: tl.constexpr,
    PAIRED: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """As mixture.down."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    block = tl.program_id(1)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    expert = tl.load(owners + block).to(tl.int64)
    if expert < 0:
        return
    pairs = tl.load(order + block * BLOCK_R + tl.arange(0, BLOCK_R))
    present, inside = pairs >= 0, columns < H
    kept = tl.maximum(pairs, 0).to(tl.int64)
    codes, scales, minimums = planes(weight, tl.full((), E * H, tl.int64), INNER, FORMAT)
    of_row: tl.constexpr = INNER // parts_of(FORMAT)
    of_scales: tl.constexpr = INNER // size_of(FORMAT)
    rows = expert * H + tl.minimum(columns, H - 1)
    sums = product(
        x + kept * INNER, present, codes + rows * of_row, scales + rows * of_scales, minimums + rows * of_scales,
        0, INNER, INNER, tl.zeros((BLOCK_N, BLOCK_R), tl.float32),
        BLOCK_K, FORMAT, CHUNK, PAIRED, INNER % BLOCK_K == 0, STAGES,
    )  # fmt: skip
    if bias is not None:
        sums += tl.load(bias + expert * H + columns, mask=inside, other=0.0).to(tl.float32)[:, None]
    target = out + kept[None, :] * H + columns[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[None, :] & inside[:, None])
