"""A linear layer of one row or a few, and the RMS norm ahead of it, which every program works out for itself."""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .norms import norm_factor


@triton.jit
def _values(x, residual, at, mask, DTYPE: tl.constexpr):
    """What is normalised, in f32: x, or the rounded sum of x and the residual."""
    values = tl.load(x + at, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        values = (values + tl.load(residual + at, mask=mask, other=0.0).to(tl.float32)).to(DTYPE).to(tl.float32)
    return values


@triton.jit
def _normalised(values, scale, factor, CAST_FIRST: tl.constexpr, DTYPE: tl.constexpr):
    y = values * scale
    if CAST_FIRST:
        y = y.to(DTYPE).to(tl.float32)
    return (y * factor).to(DTYPE)


@triton.jit
def one_row(
    x, residual, norm, weight, out, total, normed,
    N: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr, ONE_PLUS: tl.constexpr, CAST_FIRST: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """norm(x + residual)[R, K] @ weight[N, K].T -> out[R, N]; `norm` is the norm's weight. The first weights are asked for before
    x is there. total[R, K], the sum, is written with a residual, normed[R, K] unless it is None. Grid: blocks of N, rows.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1).to(tl.int64)
    inside, inner, every = columns < N, tl.arange(0, BLOCK_K), tl.arange(0, BLOCK)
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    kind: tl.constexpr = out.dtype.element_ty
    weights = weight + columns.to(tl.int64)[:, None] * K + inner[None, :]
    let_next_begin(DEPENDENT)
    left = WHOLE | (inner < K)
    w = tl.load(weights, mask=inside[:, None] & left[None, :], other=0.0)
    factor = norm_factor(norm, inner, left, ONE_PLUS, CAST_FIRST, kind)
    wait_for_inputs(DEPENDENT)
    values = _values(x, residual, row * K + every, every < K, kind)
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / K + EPS)
    if tl.program_id(0) == 0:
        if residual is not None:
            tl.store(total + row * K + every, values.to(kind), mask=every < K)
        if normed is not None:
            whole = norm_factor(norm, every, every < K, ONE_PLUS, CAST_FIRST, kind)
            tl.store(normed + row * K + every, _normalised(values, scale, whole, CAST_FIRST, kind), mask=every < K)
    part = _normalised(_values(x, residual, row * K + inner, left, kind), scale, factor, CAST_FIRST, kind)
    sums = w.to(tl.float32) * part.to(tl.float32)[None, :]
    for start in tl.range(BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < K)
        w = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        factor = norm_factor(norm + start, inner, left, ONE_PLUS, CAST_FIRST, kind)
        part = _values(x, residual, row * K + start + inner, left, kind)
        part = _normalised(part, scale, factor, CAST_FIRST, kind)
        sums += w.to(tl.float32) * part.to(tl.float32)[None, :]
    tl.store(out + row * N + columns, tl.sum(sums, axis=1).to(kind), mask=inside)
