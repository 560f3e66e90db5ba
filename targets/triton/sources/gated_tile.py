"""A tile of gate and up as activation(gate) * up, in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .elementary import activated


@gluon.jit
def gated(sums, dtype: gl.constexpr, KIND: gl.constexpr):
    """sums[2 H, R], gate over up -> [H, R], each rounded to `dtype` where layers by themselves would round."""
    WARPS: gl.constexpr = gl.num_warps()
    HALF: gl.constexpr = sums.shape[0] // 2
    pairs: gl.constexpr = gl.BlockedLayout([1, 1, 2], [8, 4, 1], [1, WARPS, 1], [2, 0, 1])
    halves = sums.to(dtype).reshape([2, HALF, sums.shape[1]]).permute((1, 2, 0))
    gate, up = gl.split(gl.convert_layout(halves, pairs))
    return activated(gate.to(gl.float32), KIND).to(dtype).to(gl.float32) * up.to(gl.float32)
