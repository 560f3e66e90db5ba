"""Linear layers of few rows on Hopper: weights are asked for before x is there. x[R, K] @ weight[N, K].T + bias[N] -> out[R, N].

Written in Gluon, since it is the order of copies that counts: programs begin while the kernel ahead still runs, and by the time
that x is there a part of the weights is too. BLOCK_N is a multiple of 64, K of BLOCK_K.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, warpgroup_mma, warpgroup_mma_wait
from triton.language.extra import cuda

from .gated_tile import gated


@gluon.jit
def few_rows_ahead(
    x, weight, bias, out, rows, N, K, X_ROW,
    BLOCK_R: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr, KIND: gl.constexpr, DEPENDENT: gl.constexpr,
):  # fmt: skip
    """For up to BLOCK_R rows, the weight as the left factor. Grid: blocks of N, blocks of rows.

    With KIND, an activation, weight[2 N, K] is gate and up: a program has BLOCK_N / 2 columns of both, and makes of them
    activation(gate) * up. Grid: blocks of half as many columns, blocks of rows.
    """
    OWN: gl.constexpr = BLOCK_N if KIND is None else BLOCK_N // 2
    num_warps: gl.constexpr = gl.num_warps()
    made: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, BLOCK_R, 16])
    along: gl.constexpr = min(32, BLOCK_K // 8)
    copied: gl.constexpr = gl.BlockedLayout([1, 8], [32 // along, along], [num_warps, 1], [1, 0])
    kept_weights: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, BLOCK_K], weight.dtype.element_ty)
    kept_values: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_R, BLOCK_K], x.dtype.element_ty)
    ring = gl.allocate_shared_memory(weight.dtype.element_ty, [STAGES, BLOCK_N, BLOCK_K], kept_weights)
    x_ring = gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, BLOCK_R, BLOCK_K], kept_values)

    # what lies beyond is read from within and never stored
    first_column, first_row = gl.program_id(0) * OWN, gl.program_id(1) * BLOCK_R
    inner = gl.arange(0, BLOCK_K, gl.SliceLayout(0, copied))[None, :]
    local = gl.arange(0, BLOCK_N, gl.SliceLayout(1, copied))
    columns = gl.minimum(local % OWN, N - 1 - first_column) + local // OWN * N
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
        fence_async_shared()
        sums = warpgroup_mma(ring.index(slot), x_ring.index(slot).permute((1, 0)), sums, is_async=True)
        sums = warpgroup_mma_wait(0, (sums,))
        ahead = step + STAGES - 1
        if ahead < steps:
            async_copy.async_load(ring.index(ahead % STAGES), weights + ahead * BLOCK_K + of_weights)
            async_copy.async_load(x_ring.index(ahead % STAGES), values + ahead * BLOCK_K + of_values)
        async_copy.commit_group()

    stored: gl.constexpr = gl.BlockedLayout([1, 1], [32, 1], [1, num_warps], [0, 1])
    if KIND is None:
        result = gl.convert_layout(sums, stored)
    else:
        result = gl.convert_layout(gated(sums, out.dtype.element_ty, KIND), stored)
    columns = first_column + gl.arange(0, OWN, gl.SliceLayout(1, stored))
    at = first_row + gl.arange(0, BLOCK_R, gl.SliceLayout(0, stored))
    if bias is not None:
        result += gl.load(bias + gl.minimum(columns, N - 1)).to(gl.float32)[:, None]
    mask = (columns < N)[:, None] & (at < rows)[None, :]
    gl.store(out + at.to(gl.int64)[None, :] * N + columns[:, None], result.to(out.dtype.element_ty), mask=mask)
