"""Operations that an exported graph is freed of: writes into part of a tensor, as cuts and joins; second names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def _copied(x: Tensor, source: Tensor, _non_blocking: bool = False) -> Tensor:
    """What `x.copy_(source)` leaves in x."""
    return source.to(x.dtype).expand(x.shape)


def _sliced(x: Tensor, source: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Tensor:
    """x with `x[start:end:step]` along `dim` replaced."""
    size = x.shape[dim]
    if not isinstance(size, int):
        whole = start in {None, 0} and step == 1 and (end is None or end >= 2**62)
        return _copied(x, source) if whole else NotImplemented
    first, last, _ = slice(start, end).indices(size)
    if step != 1:
        return _strided(x, source.to(x.dtype), dim % x.ndim, range(first, last, step))
    if first == 0 and last == size:
        return _copied(x, source)
    parts = [x.narrow(dim, 0, first), source.to(x.dtype), x.narrow(dim, last, size - last)]
    return torch.cat([part for part in parts if part.shape[dim]], dim)


def _strided(x: Tensor, source: Tensor, dim: int, places: range) -> Tensor:
    """Every element of the source as often as the stride, moved to its places, taken where it belongs."""
    spread = source.repeat_interleave(places.step, dim)
    parts = [x.narrow(dim, 0, places.start), spread, x]
    spread = torch.cat([part for part in parts if part.shape[dim]], dim).narrow(dim, 0, x.shape[dim])
    number = torch.arange(x.shape[dim], device=x.device)
    inside = torch.logical_and(number >= places.start, number < places.stop)
    taken = torch.logical_and((number - places.start) % places.step == 0, inside)
    return torch.where(taken.view([-1 if at == dim else 1 for at in range(x.ndim)]), spread, x)


def _selected(x: Tensor, source: Tensor, dim: int, index: int) -> Tensor:
    place = index % x.shape[dim]
    return _sliced(x, source.unsqueeze(dim), dim, place, place + 1)


def _new_empty(x: Tensor, size: Sequence[int], *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    return torch.zeros(size, dtype=dtype or x.dtype, device=x.device)


def _added_product(x: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta * x + alpha * (left @ right), for each matrix of a batch."""
    product = torch.bmm(left, right) * alpha
    return product if beta == 0 else x * beta + product


DECOMPOSITIONS: dict[Any, Any] = {
    aten.baddbmm.default: _added_product,
    aten.copy.default: _copied,
    aten.slice_scatter.default: _sliced,
    aten.select_scatter.default: _selected,
    aten.concatenate.default: lambda tensors, dim=0: torch.cat(tensors, dim),
    aten.new_empty.default: _new_empty,
}
