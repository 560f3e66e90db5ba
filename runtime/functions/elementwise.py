"""Elementwise functions over tensors of equal shape, possibly strided."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .base import Launch, Operands, is_small


def _same(operands: Operands, inputs: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    sources, (out,) = operands.take(inputs, 1)
    operands.floating(*sources, out)
    operands.require(all(source.shape == out.shape for source in sources), "operands of one shape")
    return sources, out


def _binary(operands: Operands, small: np.ufunc, large: Callable[..., torch.Tensor]) -> Launch:
    (a, b), out = _same(operands, 2)
    if is_small(a, b, out):
        a_array, b_array, out_array = a.numpy(), b.numpy(), out.numpy()
        return lambda: small(a_array, b_array, out_array)
    return lambda: _discard(large(a, b, out=out))


def _discard(_: object) -> None:
    return None


def add(operands: Operands) -> Launch:
    """(a, b) -> a + b."""
    return _binary(operands, np.add, torch.add)


def mul(operands: Operands) -> Launch:
    """(a, b) -> a * b."""
    return _binary(operands, np.multiply, torch.mul)


def scale(operands: Operands) -> Launch:
    """(a) -> a * factor, rounded to the type of a."""
    (a,), out = _same(operands, 1)
    factor = operands.number("factor")
    return lambda: _discard(torch.mul(a, factor, out=out))


def copy(operands: Operands) -> Launch:
    """(a) -> a, converted to the output's type when they differ."""
    (a,), (out,) = operands.take(1, 1)
    operands.require(a.shape == out.shape, "operands of one shape")
    return lambda: _discard(out.copy_(a))


def softcap(operands: Operands) -> Launch:
    """(x) -> cap * tanh(x / cap)."""
    (x,), out = _same(operands, 1)
    cap = operands.number("cap")
    operands.require(cap > 0, "a positive cap")

    def run() -> None:
        torch.div(x, cap, out=out)
        out.tanh_()
        out.mul_(cap)

    return run
