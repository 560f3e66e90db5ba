"""Linear layers through ATen and through oneDNN with weights packed at load."""

from __future__ import annotations

import torch

from .base import Launch, Operands


def linear(operands: Operands) -> Launch:
    """(x[R, K], weight[N, K][, bias[N]]) -> x @ weight.T + bias, [R, N], by ATen."""
    inputs, (out,) = operands.take(2, 1, optional=1)
    x, weight, bias = _checked(operands, inputs, out)
    operands.require(not weight.is_mkldnn, "a weight that is not packed")
    transposed = weight.t()
    if bias is None:
        return lambda: _discard(torch.mm(x, transposed, out=out))
    return lambda: _discard(torch.addmm(bias, x, transposed, out=out))


def linear_onednn(operands: Operands) -> Launch:
    """The same with a weight packed by oneDNN at load (prepack "onednn"); the library allocates its result, then it is copied."""
    inputs, (out,) = operands.take(2, 1, optional=1)
    x, weight, bias = _checked(operands, inputs, out)
    operands.require(weight.is_mkldnn, "a weight with prepack onednn")
    if len(x) == 0:
        return lambda: None
    pointwise = torch.ops.mkldnn._linear_pointwise.default

    def run() -> None:
        out.copy_(pointwise(x, weight, bias, "none", [], ""))

    return run


def _checked(
    operands: Operands, inputs: list[torch.Tensor], out: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    x, weight = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) == 3 else None
    operands.floating(*inputs, out)
    operands.require(x.ndim == 2 and weight.ndim == 2 and x.shape[1] == weight.shape[1], "x[R, K], weight[N, K]")
    operands.shaped(out, x.shape[0], weight.shape[0])
    if bias is not None:
        operands.shaped(bias, weight.shape[0])
    return x, weight, bias


def _discard(_: object) -> None:
    return None
