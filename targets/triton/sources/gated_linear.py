"""Two linear layers side by side and an activation: activation(x @ gate.T) * (x @ up.T), for weight[2 * N, K], gate above up.

Both products are rounded before the activation, as they would be if they were layers by themselves.
"""

import triton
import triton.language as tl

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
