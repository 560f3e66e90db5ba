"""Linear layers: x[R, K] @ weight[N, K].T + bias[N] -> out[R, N], sums in f32. `bias` may be None.

N, K and the elements from row to row of x are arguments, so that layers of a model share their code. WHOLE: K is a multiple of
BLOCK_K.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs


@triton.jit
def one_row(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """For a row or a few, one after another: weights stream through registers, the first before x is there.

    Grid: blocks of N, rows.
    """
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.program_id(1)
    inside = columns < N
    inner = tl.arange(0, BLOCK_K)
    weights = weight + columns.to(tl.int64)[:, None] * K + inner[None, :]
    let_next_begin(DEPENDENT)
    left = WHOLE | (inner < K)
    w = tl.load(weights, mask=inside[:, None] & left[None, :], other=0.0)
    wait_for_inputs(DEPENDENT)
    values = tl.load(x + row.to(tl.int64) * X_ROW + inner, mask=left, other=0.0)
    sums = w.to(tl.float32) * values.to(tl.float32)[None, :]
    for start in tl.range(BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < K)
        w = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        values = tl.load(x + row.to(tl.int64) * X_ROW + start + inner, mask=left, other=0.0)
        sums += w.to(tl.float32) * values.to(tl.float32)[None, :]
    result = tl.sum(sums, axis=1)
    if bias is not None:
        result += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row.to(tl.int64) * N + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def few_rows(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """For up to BLOCK_R rows: each program streams BLOCK_N rows of the weight once. Grid: blocks of N, blocks of rows."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside, present = columns < N, at < rows
    inner = tl.arange(0, BLOCK_K)
    weights = weight + columns.to(tl.int64)[None, :] * K + inner[:, None]
    values = x + at.to(tl.int64)[:, None] * X_ROW + inner[None, :]
    sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < K)
        w = tl.load(weights + start, mask=inside[None, :] & left[:, None], other=0.0)
        v = tl.load(values + start, mask=present[:, None] & left[None, :], other=0.0)
        sums = tl.dot(v, w, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    target = out + at.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[:, None] & inside[None, :])


@triton.jit
def few_rows_turned(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """As few_rows, but the weight is the left factor: its BLOCK_N rows fill the height of a matrix instruction, which few rows of
    x would not. Grid: blocks of N, blocks of rows."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    at = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside, present = columns < N, at < rows
    inner = tl.arange(0, BLOCK_K)
    weights = weight + columns.to(tl.int64)[:, None] * K + inner[None, :]
    values = x + at.to(tl.int64)[None, :] * X_ROW + inner[:, None]
    sums = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < K)
        w = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        v = tl.load(values + start, mask=present[None, :] & left[:, None], other=0.0)
        sums = tl.dot(w, v, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)[:, None]
    target = out + at.to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=present[None, :] & inside[:, None])


@triton.jit
def many_rows(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr, GROUP: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """For many rows: a tile of the output for each program, GROUP tiles of rows side by side so that weights are read from the
    cache. Grid: tiles."""
    tile = tl.program_id(0)
    tiles_r, tiles_n = tl.cdiv(rows, BLOCK_R), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * tiles_n)
    height = min(tiles_r - group * GROUP, GROUP)
    tile_r = group * GROUP + (tile % (GROUP * tiles_n)) % height
    tile_n = (tile % (GROUP * tiles_n)) // height
    at = tile_r * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # what lies beyond is read from within and never stored: no mask in the loop
    kept_at, kept_columns = tl.minimum(at, rows - 1), tl.minimum(columns, N - 1)
    values = x + kept_at.to(tl.int64)[:, None] * X_ROW + inner[None, :]
    weights = weight + kept_columns.to(tl.int64)[None, :] * K + inner[:, None]
    sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    let_next_begin(DEPENDENT)
    wait_for_inputs(DEPENDENT)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        if WHOLE:
            v, w = tl.load(values + start), tl.load(weights + start)
        else:
            left = start + inner < K
            v = tl.load(values + start, mask=left[None, :], other=0.0)
            w = tl.load(weights + start, mask=left[:, None], other=0.0)
        sums = tl.dot(v, w, sums, input_precision="ieee")
    if bias is not None:
        sums += tl.load(bias + kept_columns).to(tl.float32)[None, :]
    mask = (at < rows)[:, None] & (columns < N)[None, :]
    tl.store(out + at.to(tl.int64)[:, None] * N + columns[None, :], sums.to(out.dtype.element_ty), mask=mask)


@triton.jit
def many_rows_by_descriptors(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, UNITS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """For many rows where tiles are copied by descriptors: UNITS programs stay and do every UNITS-th tile. Grid: UNITS."""
    values = tl.make_tensor_descriptor(x, [rows, K], [X_ROW, 1], [BLOCK_R, BLOCK_K])
    weights = tl.make_tensor_descriptor(weight, [N, K], [K, 1], [BLOCK_N, BLOCK_K])
    results = tl.make_tensor_descriptor(out, [rows, N], [N, 1], [BLOCK_R, BLOCK_N])
    tiles_r, tiles_n = tl.cdiv(rows, BLOCK_R), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_r * tiles_n, UNITS, flatten=True):
        group = tile // (GROUP * tiles_n)
        height = min(tiles_r - group * GROUP, GROUP)
        at = (group * GROUP + (tile % (GROUP * tiles_n)) % height) * BLOCK_R
        column = ((tile % (GROUP * tiles_n)) // height) * BLOCK_N
        sums = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            sums = tl.dot(values.load([at, start]), weights.load([column, start]).T, sums)
        if bias is not None:
            columns = column + tl.arange(0, BLOCK_N)
            sums += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        results.store([at, column], sums.to(out.dtype.element_ty))
