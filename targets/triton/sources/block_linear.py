"""Linear layers whose weight is in planes of blocks (codes.py): x[R, K] @ weight[N, K].T + bias[N] -> out[R, N], sums in f32.

Weights become x's type on the way to the matrix instructions, of which they are the left factor. `bias` may be None; `weight`
points at bytes. N, K, K's blocks and the elements from row to row of x are arguments, so that layers of a model share their code.
"""

import triton
import triton.language as tl

from .codes import factors, part_of, parts_of, planes, product, size_of
from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def rows(
    x, weight, bias, out, count, N, K, BLOCKS, X_ROW, share,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORMAT: tl.constexpr, CHUNK: tl.constexpr,
    PAIRED: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """A tile of BLOCK_N columns and BLOCK_R of `count` rows for each program, over `share` blocks of K;
    of several shares, each has an out[R, N] of its own. Grid: blocks of rows, blocks of N, shares of K."""
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    number = tl.program_id(2)
    inside, present = columns < N, at < count
    kept = tl.minimum(columns, N - 1).to(tl.int64)
    codes, scales, minimums = planes(weight, N.to(tl.int64), K, FORMAT)
    codes += kept * (K // parts_of(FORMAT))
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    sums = product(
        x + at.to(tl.int64) * X_ROW, present, codes, scales + kept * BLOCKS, minimums + kept * BLOCKS,
        number * share * BLOCK_K, tl.minimum((number + 1) * share * BLOCK_K, K), K, sums,
        BLOCK_K, FORMAT, CHUNK, PAIRED, WHOLE, STAGES,
    )  # fmt: skip
    if bias is not None:
        sums += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[:, None]
    target = out + (number * count + at).to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[None, :] & inside[:, None])


@triton.jit
def join(
    shares, bias, out, count, N, SHARES: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr
):  # fmt: skip
    """out[R, N] = the sum of shares[SHARES, R, N] in their order, and bias. Grid: rows, blocks of N."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    total = tl.zeros((BLOCK,), tl.float32)
    for share in tl.static_range(SHARES):
        total += tl.load(shares + (share * count.to(tl.int64) + row) * N + columns, mask=inside, other=0.0)
    if bias is not None:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * N + columns, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def expand(
    weight, out, N, K,
    FORMAT: tl.constexpr, CHUNK: tl.constexpr, PAIRED: tl.constexpr, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """The weight in elements, out[N, K], for products of many rows. Grid: blocks of BLOCK chunks of the whole weight."""
    parts: tl.constexpr = parts_of(FORMAT)
    width: tl.constexpr = CHUNK // parts
    of_chunk: tl.constexpr = CHUNK // size_of(FORMAT)
    codes, scales, minimums = planes(weight, N.to(tl.int64), K, FORMAT)
    chunk = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (chunk < N.to(tl.int64) * (K // CHUNK))[:, None]
    within = tl.arange(0, width)[None, :]
    w = tl.load(codes + chunk[:, None] * width + within, mask=inside, other=0)
    first, last = chunk * of_chunk, chunk * of_chunk + (of_chunk - 1)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    dtype: tl.constexpr = out.dtype.element_ty
    for part in tl.static_range(parts):
        block = (first if part * 2 < parts else last)[:, None]
        s = tl.load(scales + block, mask=inside, other=0.0)
        m = tl.load(minimums + block, mask=inside, other=0.0) if FORMAT == "q4_1" else s
        factor, added = factors(s, m, FORMAT, PAIRED, dtype)
        factor, added = tl.broadcast_to(factor, (BLOCK, width)), tl.broadcast_to(added, (BLOCK, width))
        weights = part_of(w, factor, added, part, FORMAT, PAIRED)
        tl.store(out + chunk[:, None] * CHUNK + part * width + within, weights.to(dtype), mask=inside)
