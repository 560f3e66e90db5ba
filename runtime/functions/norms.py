"""RMS norm (Zhang and Sennrich 2019, arXiv:1910.07467), alone and after a residual addition."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .base import Context, Launch, Operands, chain, is_small, row_blocks

_BLOCK_ELEMENTS = 1 << 20
# Up to here numpy's dot product stays on the calling thread.
_ONE_ROW_ELEMENTS = 8192


@dataclass(frozen=True)
class _Style:
    eps: float
    cast_before_weight: bool
    one_plus_weight: bool


def rms_norm(operands: Operands) -> Launch:
    """(x[..., N], weight[N]) -> the same shape; statistics over the last dimension, in f32.

    `cast_before_weight`: (x32 * r).to(type) * weight, else (x32 * r * weight32).to(type). `one_plus_weight` scales by
    1 + weight. x is of rank 2 or 3 and may be strided.
    """
    (x, weight), (out,) = operands.take(2, 1)
    return _normalise(operands, x, weight, out)


def add_rms_norm(operands: Operands) -> Launch:
    """(x[R, N], residual[R, N], weight[N]) -> x + residual in the model's type, and its RMS norm. Attributes of `rms_norm`."""
    (x, residual, weight), (total, out) = operands.take(3, 2)
    operands.floating(x, residual, total)
    operands.require(x.shape == residual.shape == total.shape, "x, residual and sum of one shape")
    norm = _normalise(operands, total, weight, out)
    if is_small(x, residual, total):
        x_array, residual_array, total_array = x.numpy(), residual.numpy(), total.numpy()

        def run_small() -> None:
            np.add(x_array, residual_array, total_array)
            norm()

        return run_small

    def run() -> None:
        torch.add(x, residual, out=total)
        norm()

    return run


def _normalise(operands: Operands, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> Launch:
    operands.floating(x, weight, out)
    operands.require(x.ndim in (2, 3) and x.shape == out.shape, "x and output of one shape, rank 2 or 3")
    operands.shaped(weight, x.shape[-1])
    style = _Style(operands.number("eps"), operands.flag("cast_before_weight", True), operands.flag("one_plus_weight", False))
    operands.require(style.eps > 0 and x.shape[-1] > 0, "eps above 0, and a last dimension that is not empty")
    factor = _factor(operands.context, weight, style)
    if is_small(x, out):
        if x.ndim == 2 and len(x) == 1 and x.shape[1] <= _ONE_ROW_ELEMENTS:
            return _one_row(x[0], factor, out[0], style.eps)
        return _small(x, factor, out, style.eps)
    blocks = row_blocks(x.shape[0], x[0].numel() if len(x) else 1, _BLOCK_ELEMENTS)
    return chain([_large(operands.context, x[a:b], factor, out[a:b], style) for a, b in blocks])


def _factor(context: Context, weight: torch.Tensor, style: _Style) -> torch.Tensor:
    """What the normalised values are multiplied with, in the type of that product."""
    dtype = weight.dtype if style.cast_before_weight else torch.float32
    if not style.one_plus_weight:
        return weight if weight.dtype == dtype else _derived(context, weight, dtype, 0.0)
    return _derived(context, weight, dtype, 1.0)


def _derived(context: Context, weight: torch.Tensor, dtype: torch.dtype, plus: float) -> torch.Tensor:
    key = ("norm weight", weight.data_ptr(), dtype, plus)
    return context.shared(key, torch.Tensor, lambda: (weight.float() + plus).to(dtype))


def _one_row(x: torch.Tensor, factor: torch.Tensor, out: torch.Tensor, eps: float) -> Launch:
    """A decode step of one sequence: the statistics are one number, which Python handles faster than any array."""
    values, weight, result = x.numpy(), factor.numpy(), out.numpy()
    shrink = 1.0 / len(x)

    def run() -> None:
        np.multiply(values, 1.0 / math.sqrt(float(values.dot(values)) * shrink + eps), result)
        np.multiply(result, weight, result)

    return run


def _small(x: torch.Tensor, factor: torch.Tensor, out: torch.Tensor, eps: float) -> Launch:
    values, weight, result = x.numpy(), factor.numpy(), out.numpy()
    squares = np.empty(x.shape[:-1], np.float32)
    root = squares[..., None]
    shrink, addition = np.float32(1.0 / x.shape[-1]), np.float32(eps)

    def run() -> None:
        np.vecdot(values, values, squares)
        np.multiply(squares, shrink, squares)
        np.add(squares, addition, squares)
        np.sqrt(squares, squares)
        np.divide(values, root, result)
        np.multiply(result, weight, result)

    return run


def _large(context: Context, x: torch.Tensor, factor: torch.Tensor, out: torch.Tensor, style: _Style) -> Launch:
    """Works through f32 scratch unless everything is f32 already."""
    norms = context.scratch("norm statistics", torch.float32, x[..., 0].numel()).view(*x.shape[:-1], 1)
    eps = torch.full((1,), style.eps, dtype=torch.float32)
    shrink = 1.0 / x.shape[-1]
    direct = x.dtype == torch.float32
    wide = out if direct else context.scratch("norm rows", torch.float32, x.numel()).view(x.shape)
    source = x if direct else wide

    def statistics() -> None:
        if not direct:
            wide.copy_(x)
        torch.linalg.vector_norm(source, 2, -1, True, out=norms)
        torch.addcmul(eps, norms, norms, value=shrink, out=norms)
        norms.rsqrt_()
        torch.mul(source, norms, out=wide)

    if direct:

        def run() -> None:
            statistics()
            torch.mul(out, factor, out=out)

        return run
    if style.cast_before_weight:

        def run_cast_first() -> None:
            statistics()
            out.copy_(wide)
            torch.mul(out, factor, out=out)

        return run_cast_first

    def run_cast_last() -> None:
        statistics()
        wide.mul_(factor)
        out.copy_(wide)

    return run_cast_last
