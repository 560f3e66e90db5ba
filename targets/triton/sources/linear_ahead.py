"""Linear layers of few rows on Hopper: weights are asked for before x is there. x[R, K] @ weight[N, K].T + bias[N] -> out[R, N].

Written in Gluon, since it is the order of copies that counts: programs begin while the kernel ahead still runs, and by the time
that x is there a part of the weights is too. K is a multiple of BLOCK_K.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra import cuda


@gluon.jit
def _product(weights, values, sums, WARPGROUP: gl.constexpr):
    """weights[N, K] @ values[R, K].T, both in shared memory."""
    if WARPGROUP:
        fence_async_shared()
        sums = warpgroup_mma(weights, values.permute((1, 0)), sums, is_async=True)
        sums = warpgroup_mma_wait(0, (sums,))
    else:
        left: gl.constexpr = gl.DotOperandLayout(0, sums.type.layout, 2)
        right: gl.constexpr = gl.DotOperandLayout(1, sums.type.layout, 2)
        sums = mma_v2(weights.load(left), values.permute((1, 0)).load(right), sums)
    return sums


@gluon.jit
def few_rows_ahead(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """For up to BLOCK_R rows, the weight as the left factor. Grid: blocks of N, blocks of rows."""
    num_warps: gl.constexpr = gl.num_warps()
    WARPGROUP: gl.constexpr = BLOCK_N >= 64
    if WARPGROUP:
        made: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_R, 16])
    else:
        across: gl.constexpr = min(num_warps, BLOCK_N // 16)
        made: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [across, num_warps // across], [16, 8])
    along: gl.constexpr = min(32, BLOCK_K // 8)
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [32 // along, along], [num_warps, 1], [1, 0])
    kept_weights: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_K], weight.dtype.element_ty)
    kept_values: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_R, BLOCK_K], x.dtype.element_ty)
    ring = gl.allocate_shared_memory(weight.dtype.element_ty, [STAGES, BLOCK_N, BLOCK_K], kept_weights)
    x_ring = gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, BLOCK_R, BLOCK_K], kept_values)

    # what lies beyond is read from within and never stored
    first_column, first_row = gl.program_id(0) * BLOCK_N, gl.program_id(1) * BLOCK_R
    inner = gl.arange(0, BLOCK_K, gl.SliceLayout(0, copied))[None, :]
    columns = gl.minimum(gl.arange(0, BLOCK_N, gl.SliceLayout(1, copied)), N - 1 - first_column)
    at = gl.minimum(gl.arange(0, BLOCK_R, gl.SliceLayout(1, copied)), rows - 1 - first_row)
    of_weights, of_values = columns[:, None] * K + inner, at[:, None] * X_ROW + inner
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

    sums = gl.zeros([BLOCK_N, BLOCK_R], gl.float32, made)
    for step in range(steps):
        async_copy.wait_group(STAGES - 2)
        slot = step % STAGES
        sums = _product(ring.index(slot), x_ring.index(slot), sums, WARPGROUP)
        ahead = step + STAGES - 1
        if ahead < steps:
            async_copy.async_load(ring.index(ahead % STAGES), weights + ahead * BLOCK_K + of_weights)
            async_copy.async_load(x_ring.index(ahead % STAGES), values + ahead * BLOCK_K + of_values)
        async_copy.commit_group()

    stored: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [1, num_warps], [0, 1])
    sums = gl.convert_layout(sums, stored)
    columns = first_column + gl.arange(0, BLOCK_N, gl.SliceLayout(1, stored))
    at = first_row + gl.arange(0, BLOCK_R, gl.SliceLayout(0, stored))
    if bias is not None:
        sums += gl.load(bias + gl.minimum(columns, N - 1)).to(gl.float32)[:, None]
    mask = (columns < N)[:, None] & (at < rows)[None, :]
    gl.store(out + at.to(gl.int64)[None, :] * N + columns[:, None], sums.to(out.dtype.element_ty), mask=mask)
