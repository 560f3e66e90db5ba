"""Two linear layers side by side and an activation: activation(x @ gate.T) * (x @ up.T), for weight[2 * N, K], gate above up.

Both products are rounded before the activation, as they would be if they were layers by themselves.
"""

import triton
import triton.language as tl

from .dependence import let_next_begin, wait_for_inputs
from .elementary import activated


@triton.jit
def many_rows_by_descriptors(
    x, weight, out, rows, N, K, X_ROW,
    KIND: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
    UNITS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """For many rows, x[R, K] -> out[R, N]: BLOCK_N columns of the gate and the same of up are one factor, so that both halves of
    a sum lie in one thread. UNITS programs stay and do every UNITS-th tile. Grid: UNITS."""
    values = tl.make_tensor_descriptor(x, [rows, K], [X_ROW, 1], [BLOCK_R, BLOCK_K])
    weights = tl.make_tensor_descriptor(weight, [2, N, K], [N.to(tl.int64) * K, K, 1], [2, BLOCK_N, BLOCK_K])
    results = tl.make_tensor_descriptor(out, [rows, N], [N, 1], [BLOCK_R, BLOCK_N])
    tiles_r, tiles_n = tl.cdiv(rows, BLOCK_R), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_r * tiles_n, UNITS, flatten=True):
        group = tile // (GROUP * tiles_n)
        height = min(tiles_r - group * GROUP, GROUP)
        at = (group * GROUP + (tile % (GROUP * tiles_n)) % height) * BLOCK_R
        column = ((tile % (GROUP * tiles_n)) // height) * BLOCK_N
        sums = tl.zeros((BLOCK_R, 2 * BLOCK_N), tl.float32)
        for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
            factor = weights.load([0, column, start]).reshape(2 * BLOCK_N, BLOCK_K)
            sums = tl.dot(values.load([at, start]), factor.T, sums)
        products = sums.to(out.dtype.element_ty).reshape(BLOCK_R, 2, BLOCK_N).permute(0, 2, 1)
        gate, up = tl.split(products)
        gated = activated(gate.to(tl.float32), KIND).to(out.dtype.element_ty).to(tl.float32) * up.to(tl.float32)
        results.store([at, column], gated.to(out.dtype.element_ty))


@triton.jit
def one_row(
    x, weight, out, rows, N, K, X_ROW,
    KIND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE: tl.constexpr,
    STAGES: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """For a row or a few, one after another: weights stream through registers, the first before x is there. A tile has half of
    BLOCK_N columns of both halves. Grid: blocks of half as many columns, rows."""
    OWN: tl.constexpr = BLOCK_N // 2
    local = tl.arange(0, BLOCK_N)
    columns, row = tl.program_id(0) * OWN + local % OWN, tl.program_id(1)
    inside = columns < N
    inner = tl.arange(0, BLOCK_K)
    weights = weight + (columns + local // OWN * N).to(tl.int64)[:, None] * K + inner[None, :]
    source = x + row.to(tl.int64) * X_ROW + inner
    let_next_begin(DEPENDENT)
    left = WHOLE | (inner < K)
    w = tl.load(weights, mask=inside[:, None] & left[None, :], other=0.0)
    wait_for_inputs(DEPENDENT)
    values = tl.load(source, mask=left, other=0.0)
    sums = w.to(tl.float32) * values.to(tl.float32)[None, :]
    for start in tl.range(BLOCK_K, K, BLOCK_K, num_stages=STAGES):
        left = WHOLE | (start + inner < K)
        w = tl.load(weights + start, mask=inside[:, None] & left[None, :], other=0.0)
        values = tl.load(source + start, mask=left, other=0.0)
        sums += w.to(tl.float32) * values.to(tl.float32)[None, :]
    dtype = out.dtype.element_ty
    halves = tl.sum(sums, axis=1).to(dtype).to(tl.float32).reshape(2, OWN).permute(1, 0)
    gate, up = tl.split(halves)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    result = activated(gate, KIND).to(dtype).to(tl.float32) * up
    tl.store(out + row.to(tl.int64) * N + own, result.to(dtype), mask=own < N)
