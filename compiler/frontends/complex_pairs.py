"""Complex numbers as pairs of real tensors while a model is traced: rope is written with them in some models, `ts` has none.

In place of a complex tensor the model's own code holds a `Pair`, which can do what rope does with one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor


class Pair:
    """Real and imaginary parts, real tensors of one shape."""

    def __init__(self, real: Tensor, imaginary: Tensor) -> None:
        self.real, self.imag = real, imaginary

    @property
    def device(self) -> torch.device:
        return self.real.device

    @property
    def shape(self) -> torch.Size:
        return self.real.shape

    def to(self, *where: Any) -> Pair:
        return Pair(self.real.to(*where), self.imag.to(*where))

    def unsqueeze(self, dimension: int) -> Pair:
        return Pair(self.real.unsqueeze(dimension), self.imag.unsqueeze(dimension))

    def __getitem__(self, index: Any) -> Pair:
        return Pair(self.real[index], self.imag[index])

    def __mul__(self, other: Pair | Tensor | float) -> Pair:
        if isinstance(other, Pair):
            return Pair(self.real * other.real - self.imag * other.imag, self.real * other.imag + self.imag * other.real)
        return Pair(self.real * other, self.imag * other)

    __rmul__ = __mul__


def _polar(length: Tensor, angle: Tensor) -> Pair:
    return Pair(length * angle.cos(), length * angle.sin())


def _view_as_complex(x: Tensor) -> Pair:
    return Pair(x[..., 0], x[..., 1])


def _view_as_real(x: Pair) -> Tensor:
    return torch.stack([x.real, x.imag], dim=-1)


@contextlib.contextmanager
def complex_as_pairs() -> Iterator[None]:
    """Within, torch.polar, torch.view_as_complex and torch.view_as_real make and take pairs."""
    with mock.patch.multiple(torch, polar=_polar, view_as_complex=_view_as_complex, view_as_real=_view_as_real):
        yield
