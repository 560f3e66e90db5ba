"""The gated activation of a feed-forward block."""

from __future__ import annotations

import torch

from .base import Launch, Operands

_silu = torch.ops.aten.silu.out
_gelu = torch.ops.aten.gelu.out


def gated_activation(operands: Operands) -> Launch:
    """(gate[R, I], up[R, I]) -> activation(gate) * up. `activation` is "silu", "gelu" (exact) or "gelu_tanh".

    The inputs may be column windows of one merged buffer. The activation is rounded to the model's type before the product,
    as eager models do.
    """
    (gate, up), (out,) = operands.take(2, 1)
    operands.floating(gate, up, out)
    operands.require(gate.shape == up.shape == out.shape, "gate, up and output of one shape")
    activation = operands.choice("activation", ("silu", "gelu", "gelu_tanh"))
    if activation == "silu":

        def run() -> None:
            _silu(gate, out=out)
            torch.mul(out, up, out=out)

        return run
    approximate = "tanh" if activation == "gelu_tanh" else "none"

    def run_gelu() -> None:
        _gelu(gate, approximate=approximate, out=out)
        torch.mul(out, up, out=out)

    return run_gelu
