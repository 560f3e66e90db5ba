"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864): half-split pairs, as in Hugging Face, or neighbouring ones."""

from __future__ import annotations

import numpy as np
import torch

from .base import Context, Launch, Operands, is_small


def rope_table(operands: Operands) -> Launch:
    """(positions[R] i32, inv_freq[D/2] f32) -> cos[R, D], sin[R, D], times `scaling`.

    Angles, cosines and sines are computed in f32, then cast. `layout` "half": angle j is that of inv_freq[j mod D/2].
    """
    (positions, frequencies), (cos, sin) = operands.take(2, 2)
    operands.typed(torch.int32, positions)
    operands.typed(torch.float32, frequencies)
    operands.floating(cos, sin)
    operands.choice("layout", ("half",), "half")
    scaling = operands.number("scaling", 1.0)
    operands.require(positions.ndim == 1 and frequencies.ndim == 1, "positions[R], inv_freq[D/2]")
    half = len(frequencies)
    for table in (cos, sin):
        operands.shaped(table, len(positions), 2 * half)
    angles = operands.context.scratch("rope angles", torch.float32, 2 * len(positions) * half).view(2, -1, half)
    cos_halves, sin_halves = cos.unflatten(1, (2, half)), sin.unflatten(1, (2, half))
    column = positions.unsqueeze(1)

    def run() -> None:
        angle, value = angles[0], angles[1]
        angle.copy_(column)
        angle.mul_(frequencies)
        for compute, table in ((torch.cos, cos_halves), (torch.sin, sin_halves)):
            compute(angle, out=value)
            value.mul_(scaling)
            table.copy_(value.unsqueeze(1))

    return run


def rope(operands: Operands) -> Launch:
    """(x[R, heads, D], cos[R, d], sin[R, d]) -> rotated [R, heads, D]; d <= D, the columns from d on pass through.

    Turned are the pairs (j, j + d/2), or (2 j, 2 j + 1) where `interleaved`, by the angle of column j of the tables, j < d/2.
    Tables are of x's type, or f32: then products are not rounded to x's type before their sum.
    """
    (x, cos, sin), (out,) = operands.take(3, 1)
    check_tables(operands, x, cos, sin)
    operands.floating(x, out)
    operands.shaped(out, *x.shape)
    return rotation(operands.context, x, cos, sin, out, operands.flag("interleaved", False))


def check_tables(operands: Operands, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    operands.floating(x)
    operands.floating(cos, sin)
    operands.require(cos.dtype in {x.dtype, torch.float32}, "tables of the type of x, or f32")
    operands.require(x.ndim == 3 and cos.ndim == 2 and cos.shape == sin.shape, "x[R, heads, D], cos[R, d], sin[R, d]")
    rotated = cos.shape[1]
    fits = len(cos) == len(x) and 0 < rotated <= x.shape[2] and rotated % 2 == 0
    operands.require(fits, "tables of R rows and an even number of columns, at most D")


def rotation(
    context: Context, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, interleaved: bool = False
) -> Launch:
    """Bind x * cos + rotate_half(x) * sin, or its form for neighbouring pairs; operands were checked."""
    rotated = cos.shape[1]
    turn = _interleaved if interleaved else _small if is_small(x, out) else _large
    launch = turn(context, x[..., :rotated], cos, sin, out[..., :rotated])
    if rotated == x.shape[2]:
        return launch
    rest, rest_out = x[..., rotated:], out[..., rotated:]

    def run() -> None:
        launch()
        rest_out.copy_(rest)

    return run


def _small(context: Context, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> Launch:
    rows, heads, columns = x.shape
    half = columns // 2
    values, result, cosine = x.numpy(), out.numpy(), cos.numpy()[:, None, :]
    swapped, sine = x.unflatten(2, (2, half)).numpy()[:, :, ::-1], sin.unflatten(1, (2, half)).numpy()[:, None]
    product = context.scratch("rope product", torch.float32, x.numel()).view(x.shape).numpy()
    halves = product.reshape(rows, heads, 2, half)
    left, right = result[..., :half], result[..., half:]
    left_product, right_product = product[..., :half], product[..., half:]

    def run() -> None:
        np.multiply(swapped, sine, halves)
        np.multiply(values, cosine, result)
        np.subtract(left, left_product, left)
        np.add(right, right_product, right)

    return run


def _large(context: Context, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> Launch:
    del context
    half = x.shape[2] // 2
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    if x.dtype == torch.float32:
        left, right = (x[..., :half], out[..., :half]), (x[..., half:], out[..., half:])

        def run() -> None:
            torch.mul(x, cos, out=out)
            left[1].addcmul_(right[0], sin[..., :half], value=-1)
            right[1].addcmul_(left[0], sin[..., half:])

        return run

    def run_rounding() -> None:
        # eager models round both products before the sum
        turned = torch.cat((x[..., half:].neg(), x[..., :half]), -1)
        torch.add(x * cos, turned * sin, out=out)

    return run_rounding


def _interleaved(context: Context, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor) -> Launch:
    del context
    half = x.shape[2] // 2
    cosine, sine = cos[:, None, :half], sin[:, None, :half]
    first, second, first_out, second_out = x[..., ::2], x[..., 1::2], out[..., ::2], out[..., 1::2]
    if x.dtype == torch.float32:

        def run() -> None:
            torch.mul(first, cosine, out=first_out)
            first_out.addcmul_(second, sine, value=-1)
            torch.mul(second, cosine, out=second_out)
            second_out.addcmul_(first, sine)

        return run

    def run_rounding() -> None:
        torch.sub(first * cosine, second * sine, out=first_out)
        torch.add(second * cosine, first * sine, out=second_out)

    return run_rounding
