"""Linear layers of few rows and few columns to a program, on Hopper. x[R, K] @ weight[N, K].T + bias[N] -> out[R, N].

As linear_ahead.py, but the warps of a program share K: each has a part of every stage to itself, and sums it up for the whole
tile. Few columns to a program would leave a chain of products, each waiting for the one before, for warps that do the same. K is
a multiple of BLOCK_K.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra import cuda

from .gated_tile import gated


@gluon.jit
def few_rows_shared(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, KIND: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """For up to BLOCK_R rows, the weight as the left factor. Grid: blocks of N, blocks of rows.

    With KIND, an activation, weight[2 N, K] is gate and up: a program has BLOCK_N / 2 columns of both, and makes of them
    activation(gate) * up. Grid: blocks of half as many columns, blocks of rows.
    """
    OWN: gl.constexpr = BLOCK_N if KIND is None else BLOCK_N // 2
    WARPS: gl.constexpr = gl.num_warps()
    PART: gl.constexpr = BLOCK_K // WARPS
    ALONG: gl.constexpr = PART // 8
    made: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    copied: gl.constexpr = gl.BlockedLayout([1, 1, 8], [1, 32 // ALONG, ALONG], [WARPS, 1, 1], [2, 1, 0])
    kept: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [2, 1, 0])
    ring = gl.allocate_shared_memory(weight.dtype.element_ty, [STAGES, WARPS, BLOCK_N, PART], kept)
    x_ring = gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, WARPS, BLOCK_R, PART], kept)

    # what lies beyond is read from within and never stored
    first_column, first_row = gl.program_id(0) * OWN, gl.program_id(1) * BLOCK_R
    parts = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, copied)))[:, None, None] * PART
    inner = parts + gl.arange(0, PART, gl.SliceLayout(0, gl.SliceLayout(1, copied)))[None, None, :]
    local = gl.arange(0, BLOCK_N, gl.SliceLayout(0, gl.SliceLayout(2, copied)))
    columns = gl.minimum(local % OWN, N - 1 - first_column) + local // OWN * N
    at = gl.minimum(gl.arange(0, BLOCK_R, gl.SliceLayout(0, gl.SliceLayout(2, copied))), rows - 1 - first_row)
    of_weights, of_values = columns[None, :, None] * K + inner, at[None, :, None] * X_ROW + inner
    weights, values = weight + first_column.to(gl.int64) * K, x + first_row.to(gl.int64) * X_ROW

    if DEPENDENT:
        cuda.gdc_launch_dependents()
    steps = K // BLOCK_K
    for stage in gl.static_range(STAGES - 1):
        if stage < steps:
            async_copy.async_load(ring.index(stage), weights + stage * BLOCK_K + of_weights)
        async_copy.commit_group()
    if DEPENDENT:
        cuda.gdc_wait()
    for stage in gl.static_range(STAGES - 1):
        if stage < steps:
            async_copy.async_load(x_ring.index(stage), values + stage * BLOCK_K + of_values)
        async_copy.commit_group()

    left: gl.constexpr = gl.DotOperandLayout(0, made, 2)
    right: gl.constexpr = gl.DotOperandLayout(1, made, 2)
    sums = gl.zeros([WARPS, BLOCK_N, BLOCK_R], gl.float32, made)
    for step in range(steps):
        async_copy.wait_group(STAGES - 2)
        slot = step % STAGES
        w, v = ring.index(slot).load(left), x_ring.index(slot).permute((0, 2, 1)).load(right)
        sums = mma_v2(w, v, sums)
        ahead = step + STAGES - 1
        if ahead < steps:
            async_copy.async_load(ring.index(ahead % STAGES), weights + ahead * BLOCK_K + of_weights)
            async_copy.async_load(x_ring.index(ahead % STAGES), values + ahead * BLOCK_K + of_values)
        async_copy.commit_group()

    # a thread has the parts of its elements
    whole: gl.constexpr = gl.BlockedLayout([WARPS, 1, 1], [1, 16, 2], [1, 1, WARPS], [1, 2, 0])
    stored: gl.constexpr = gl.SliceLayout(0, whole)
    result = gl.sum(gl.convert_layout(sums, whole), axis=0)
    if KIND is not None:
        result = gl.convert_layout(gated(result, out.dtype.element_ty, KIND), stored)
    columns = first_column + gl.arange(0, OWN, gl.SliceLayout(1, stored))
    at = first_row + gl.arange(0, BLOCK_R, gl.SliceLayout(0, stored))
    if bias is not None:
        result += gl.load(bias + gl.minimum(columns, N - 1)).to(gl.float32)[:, None]
    mask = (columns < N)[:, None] & (at < rows)[None, :]
    gl.store(out + at.to(gl.int64)[None, :] * N + columns[:, None], result.to(out.dtype.element_ty), mask=mask)
