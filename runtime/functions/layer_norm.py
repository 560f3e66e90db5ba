"""Layer norm (Ba et al. 2016, arXiv:1607.06450)."""

from __future__ import annotations

import torch

from .base import Launch, Operands

_layer_norm = torch.ops.aten.native_layer_norm.default


def layer_norm(operands: Operands) -> Launch:
    """(x[..., N], weight[N][, bias[N]]) -> (x - mean) / sqrt(variance + eps) * weight + bias, the same shape.

    Mean and variance are over the last dimension; everything is in float32, rounded once to the type of x. x is of rank 2 or 3
    and may be strided.
    """
    inputs, (out,) = operands.take(2, 1, optional=1)
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) == 3 else None
    operands.floating(*inputs, out)
    operands.require(x.ndim in (2, 3) and x.shape == out.shape, "x and output of one shape, rank 2 or 3")
    for item in inputs[1:]:
        operands.shaped(item, x.shape[-1])
    eps = operands.number("eps")
    operands.require(eps > 0 and x.shape[-1] > 0, "eps above 0, and a last dimension that is not empty")
    features = [x.shape[-1]]

    def run() -> None:
        out.copy_(_layer_norm(x, features, weight, bias, eps)[0])

    return run
