"""Writes into part of a tensor, as export leaves them when it makes a graph free of side effects, as cuts and joins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _copied(x: Tensor, source: Tensor, _non_blocking: bool = False) -> Tensor:
    """What `x.copy_(source)` leaves in x."""
    return source.to(x.dtype).expand(x.shape)


def _sliced(x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    size = x.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    if step != 1:
        return NotImplemented
    if first == 0 and last == size:
        return source.to(x.dtype).expand(x.shape)
    return torch.cat([x.narrow(dim, 0, first), source.to(x.dtype), x.narrow(dim, last, size - last)], dim)


def _selected(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    place = index % x.shape[dim]
    return _sliced(x, source.unsqueeze(dim), dim, place, place + 1)


WITHOUT_SCATTERS: dict[Any, Any] = {
    aten.copy.default: _copied,
    aten.slice_scatter.default: _sliced,
    aten.select_scatter.default: _selected,
}
