"""RMS norm alone and after a residual addition, and layer norm. A program does some heads (or the whole row) of one row."""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def norm_factor(weight, columns, mask, ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """What normalised values are multiplied with, in f32."""
    factor = tl.load(weight + columns, mask=mask, other=0.0).to(tl.float32)
    if ONE_PLUS:
        factor += 1.0
        if CAST_FIRST:
            factor = factor.to(DTYPE).to(tl.float32)
    return factor


@triton.jit
def _normalised(x, factor, N: tl.constexpr, EPS: tl.constexpr, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """x is [HEADS, BLOCK] in f32, 0 beyond N."""
    mean = tl.sum(x * x, axis=1) / N
    return scaled(x, tl.rsqrt(mean + EPS), factor, CAST_FIRST, DTYPE)


@triton.jit
def scaled(x, scale, factor, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    """x * scale * factor, rounded; x is [HEADS, BLOCK], scale one number for each head."""
    y = x * scale[:, None]
    if CAST_FIRST:
        y = y.to(DTYPE).to(tl.float32)
    return (y * factor[None, :]).to(DTYPE)


@triton.jit
def rms_norm(
    x, weight, out,
    HEADS: tl.constexpr, N: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr, EPS: tl.constexpr,
    ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """x[R, HEADS, N] strided, weight[N] -> out[R, HEADS, N] dense. Grid: rows, blocks of heads."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    mask = (heads < HEADS)[:, None] & inside[None, :]
    factor = norm_factor(weight, columns, inside, ONE_PLUS, CAST_FIRST, out.dtype.element_ty)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    values = tl.load(x + row * X_ROW + heads[:, None] * X_HEAD + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    y = _normalised(values, factor, N, EPS, CAST_FIRST, out.dtype.element_ty)
    tl.store(out + row * (HEADS * N) + heads[:, None] * N + columns[None, :], y, mask=mask)


@triton.jit
def add_rms_norm(
    x, residual, weight, total, out,
    N: tl.constexpr, X_ROW: tl.constexpr, RESIDUAL_ROW: tl.constexpr, EPS: tl.constexpr,
    ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """x[R, N], residual[R, N], weight[N] -> total[R, N] = x + residual, rounded, and its norm. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    factor = norm_factor(weight, columns, inside, ONE_PLUS, CAST_FIRST, out.dtype.element_ty)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    first = tl.load(x + row * X_ROW + columns, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(residual + row * RESIDUAL_ROW + columns, mask=inside, other=0.0).to(tl.float32)
    sum_of_both = (first + second).to(total.dtype.element_ty)
    tl.store(total + row * N + columns, sum_of_both, mask=inside)
    values = sum_of_both.to(tl.float32)[None, :]
    y = _normalised(values, factor, N, EPS, CAST_FIRST, out.dtype.element_ty)
    tl.store(out + row * N + columns[None, :], y, mask=inside[None, :])


@triton.jit
def layer_norm(
    x, weight, bias, out,
    HEADS: tl.constexpr, N: tl.constexpr, X_ROW: tl.constexpr, X_HEAD: tl.constexpr, EPS: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """x[R, HEADS, N] strided, weight[N], bias[N] or None -> out[R, HEADS, N] dense. Grid: rows, blocks of heads."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    columns = tl.arange(0, BLOCK)
    inside = columns < N
    mask = (heads < HEADS)[:, None] & inside[None, :]
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    values = tl.load(x + row * X_ROW + heads[:, None] * X_HEAD + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, values - (tl.sum(values, axis=1) / N)[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / N
    y = centred * tl.rsqrt(variance + EPS)[:, None] * factor[None, :]
    if bias is not None:
        y += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row * (HEADS * N) + heads[:, None] * N + columns[None, :], y.to(out.dtype.element_ty), mask=mask)
