"""Linear layers in products of 8-bit floats (e4m3), which the weight is stored in: planes of blocks of 128 (codes.py).

x becomes such floats first, whose codes lie as the weight's do. Of few rows it is a sum of two, which hold all that a bfloat16
has; many rows are rounded to one. Sums of a block are scaled block by block. Where a weight is the left factor of a product, its
scales go with the height of a tile.
"""

import triton
import triton.language as tl

from .codes import planes
from .dependence import let_next_begin, wait_for_inputs
from .float8 import float8_bits, float8_rounded


@triton.jit
def _elements(BLOCK: tl.constexpr):
    """The elements that bytes stand for: those of a chunk are 0, 64, 1, 65, ..."""
    within = tl.arange(0, BLOCK)
    return within // 128 * 128 + within % 128 // 2 + within % 2 * 64


@triton.jit
def split_rows(x, codes, scales, count, K, X_ROW, MOST: tl.constexpr, BLOCKS: tl.constexpr, DEPENDENT: tl.constexpr):
    """x[R, K] -> codes[2, R, K], scales[K // 128, MOST]: what is closest to x times a power of two, and what is left.

    A bfloat16 is the sum of both, but where it is less than 2^-17 of the largest of its block. Grid: rows, BLOCKS blocks each.
    """
    row = tl.program_id(0)
    block = tl.program_id(1) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < K // 128
    at = block[:, None] * 128 + _elements(128)[None, :]
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    values = tl.load(x + row.to(tl.int64) * X_ROW + at, mask=inside[:, None], other=0.0).to(tl.float32)
    exponent = tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1) >> 23
    # the largest becomes a number from 128 to 256
    exponent = tl.minimum(tl.maximum(exponent, 16), 240)
    values *= ((261 - exponent) << 23).to(tl.float32, bitcast=True)[:, None]
    # what is infinite is no number among 8-bit floats
    values = tl.where(tl.abs(values) == float("inf"), float("nan"), values)
    high = float8_rounded(values)
    target = codes + row.to(tl.int64) * K + block[:, None] * 128 + tl.arange(0, 128)[None, :]
    tl.store(target, float8_bits(high), mask=inside[:, None])
    tl.store(target + count.to(tl.int64) * K, float8_bits(values - high), mask=inside[:, None])
    tl.store(scales + block * MOST + row, ((exponent - 7) << 23).to(tl.float32, bitcast=True), mask=inside)


@triton.jit
def _ask_for(addresses):
    """Lines of memory into the second cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def few_rows(
    codes, scales, weight, bias, out, count, N, K, share,
    MOST: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, AHEAD: tl.constexpr, STAGES: tl.constexpr,
    DEPENDENT: tl.constexpr,
):  # fmt: skip
    """What `split_rows` made of x @ weight[N, K].T + bias[N] -> out[R, N], over `share` blocks of K; of several shares, each has
    an out[R, N] of its own. The first AHEAD blocks are asked for before x is there.

    Grid: blocks of rows, blocks of N, shares of K.
    """
    at = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    number = tl.program_id(2)
    inner = tl.arange(0, 128)
    # what lies beyond is read from within and never stored: no mask in the loop
    kept, kept_columns = tl.minimum(at, count - 1), tl.minimum(columns, N - 1).to(tl.int64)
    floats, factors, _ = planes(weight, N.to(tl.int64), K, "e4m3_128")
    weights = floats.to(tl.pointer_type(tl.float8e4nv)) + kept_columns[:, None] * K + inner[None, :]
    high = codes.to(tl.pointer_type(tl.float8e4nv)) + kept.to(tl.int64)[None, :] * K + inner[:, None]
    low = high + count.to(tl.int64) * K
    factors += kept_columns * (K // 128)
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    let_next_begin(DEPENDENT)
    if AHEAD > 0:
        lines = weight.to(tl.int64) + kept_columns[:, None] * K + (number * share + tl.arange(0, AHEAD)[None, :]) * 128
        _ask_for(lines)
    wait_for_inputs(DEPENDENT)
    for block in tl.range(number * share, tl.minimum((number + 1) * share, K // 128), num_stages=STAGES):
        w = tl.load(weights + block * 128)
        part = tl.dot(w, tl.load(low + block * 128))
        part = tl.dot(w, tl.load(high + block * 128), part)
        sums += part * (tl.load(factors + block)[:, None] * tl.load(scales + block * MOST + kept)[None, :])
    if bias is not None:
        sums += tl.load(bias + kept_columns).to(tl.float32)[:, None]
    target = out + (number * count + at).to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=(at < count)[None, :] & (columns < N)[:, None])


@triton.jit
def round_rows(x, codes, scales, K, X_ROW, BLOCK: tl.constexpr, DEPENDENT: tl.constexpr):
    """x[R, K] -> codes[R, K], scales[R]: the largest of a row becomes 448. Grid: rows."""
    row = tl.program_id(0).to(tl.int64)
    within, element = tl.arange(0, BLOCK), _elements(BLOCK)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, K, BLOCK):
        values = tl.load(x + row * X_ROW + start + within, mask=start + within < K, other=0.0)
        largest = tl.maximum(largest, tl.abs(values.to(tl.float32)))
    scale = tl.max(largest, axis=0) / 448.0
    inverse = tl.where(scale > 0.0, 1.0 / tl.where(scale > 0.0, scale, 1.0), 0.0)
    target = codes + row * K
    for start in range(0, K, BLOCK):
        values = tl.load(x + row * X_ROW + start + element, mask=start + within < K, other=0.0).to(tl.float32)
        tl.store(target + start + within, float8_bits(values * inverse), mask=start + within < K)
    tl.store(scales + row, scale)


@triton.jit
def many_rows(
    codes, scales, weight, bias, out, rows, N, K,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """codes[R, K] * scales[R] @ weight[N, K].T + bias[N] -> out[R, N]. GROUP tiles of rows side by side, so that weights are read
    from the cache. Grid: tiles."""
    tile = tl.program_id(0)
    tiles_r, tiles_n = tl.cdiv(rows, BLOCK_R), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * tiles_n)
    height = min(tiles_r - group * GROUP, GROUP)
    tile_r = group * GROUP + (tile % (GROUP * tiles_n)) % height
    tile_n = (tile % (GROUP * tiles_n)) // height
    at = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, 128)
    kept_at, kept_columns = tl.minimum(at, rows - 1).to(tl.int64), tl.minimum(columns, N - 1).to(tl.int64)
    floats, factors, _ = planes(weight, N.to(tl.int64), K, "e4m3_128")
    weights = floats.to(tl.pointer_type(tl.float8e4nv)) + kept_columns[:, None] * K + inner[None, :]
    values = codes.to(tl.pointer_type(tl.float8e4nv)) + kept_at[None, :] * K + inner[:, None]
    factors += kept_columns * (K // 128)
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    for block in tl.range(0, K // 128, num_stages=STAGES):
        part = tl.dot(tl.load(weights + block * 128), tl.load(values + block * 128))
        sums += part * tl.load(factors + block)[:, None]
    sums *= tl.load(scales + kept_at)[None, :]
    if bias is not None:
        sums += tl.load(bias + kept_columns).to(tl.float32)[:, None]
    mask = (columns < N)[:, None] & (at < rows)[None, :]
    tl.store(out + at.to(tl.int64)[None, :] * N + columns[:, None], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def many_rows_by_descriptors(
    codes, scales, weight, bias, out, rows, N, K,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The same with tiles that descriptors copy; PROGRAMS programs stay and do every PROGRAMS-th tile. Grid: PROGRAMS."""
    floats, factors, _ = planes(weight, N.to(tl.int64), K, "e4m3_128")
    weights = tl.make_tensor_descriptor(floats.to(tl.pointer_type(tl.float8e4nv)), [N, K], [K, 1], [BLOCK_N, 128])
    values = tl.make_tensor_descriptor(codes.to(tl.pointer_type(tl.float8e4nv)), [rows, K], [K, 1], [BLOCK_R, 128])
    tiles_r, tiles_n = tl.cdiv(rows, BLOCK_R), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_r * tiles_n, PROGRAMS):
        group = tile // (GROUP * tiles_n)
        height = min(tiles_r - group * GROUP, GROUP)
        first = (group * GROUP + (tile % (GROUP * tiles_n)) % height) * BLOCK_R
        column = ((tile % (GROUP * tiles_n)) // height) * BLOCK_N
        at, columns = first + tl.arange(0, BLOCK_R), column + tl.arange(0, BLOCK_N)
        kept_columns = tl.minimum(columns, N - 1).to(tl.int64)
        of_rows = factors + kept_columns * (K // 128)
        sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        for block in tl.range(0, K // 128, num_stages=STAGES):
            part = tl.dot(weights.load([column, block * 128]), values.load([first, block * 128]).T)
            sums += part * tl.load(of_rows + block)[:, None]
        sums *= tl.load(scales + tl.minimum(at, rows - 1))[None, :]
        if bias is not None:
            sums += tl.load(bias + kept_columns).to(tl.float32)[:, None]
        mask = (columns < N)[:, None] & (at < rows)[None, :]
        tl.store(out + at.to(tl.int64)[None, :] * N + columns[:, None], sums.to(out.dtype.element_ty), mask=mask)
