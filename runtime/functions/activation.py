"""The activations of a feed-forward block, plain and gated."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .base import Launch, Operands

_silu = torch.ops.aten.silu.out
_gelu = torch.ops.aten.gelu.out

KINDS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


def activation(operands: Operands) -> Launch:
    """(x[R, I]) -> activation(x). `kind` is "silu", "gelu" (exact), "gelu_tanh", "relu" or "relu2" (the square of relu)."""
    (x,), (out,) = operands.take(1, 1)
    operands.floating(x, out)
    operands.require(x.shape == out.shape, "x and output of one shape")
    compute = _kind(operands.choice("kind", KINDS))
    return lambda: compute(x, out)


def gated_activation(operands: Operands) -> Launch:
    """(gate[R, I], up[R, I]) -> activation(gate) * up. `activation` is a kind of `activation`.

    The inputs may be column windows of one merged buffer. The activation is rounded to the model's type before the product,
    as eager models do.
    """
    (gate, up), (out,) = operands.take(2, 1)
    operands.floating(gate, up, out)
    operands.require(gate.shape == up.shape == out.shape, "gate, up and output of one shape")
    compute = _kind(operands.choice("activation", KINDS))

    def run() -> None:
        compute(gate, out)
        torch.mul(out, up, out=out)

    return run


def _kind(name: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """The activation as a function of x and where the result goes."""
    return {"silu": _into_silu, "relu": _into_relu, "relu2": _into_relu2, "gelu": _into_gelu, "gelu_tanh": _into_gelu_tanh}[name]


def _into_silu(x: torch.Tensor, out: torch.Tensor) -> None:
    _silu(x, out=out)


def _into_gelu(x: torch.Tensor, out: torch.Tensor) -> None:
    _gelu(x, approximate="none", out=out)


def _into_gelu_tanh(x: torch.Tensor, out: torch.Tensor) -> None:
    _gelu(x, approximate="tanh", out=out)


def _into_relu(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.clamp_min(x, 0, out=out)


def _into_relu2(x: torch.Tensor, out: torch.Tensor) -> None:
    torch.clamp_min(x, 0, out=out)
    torch.mul(out, out, out=out)
