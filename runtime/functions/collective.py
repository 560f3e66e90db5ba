"""Collectives over the ranks along a mesh axis."""

from __future__ import annotations

from torch import distributed

from .base import Launch, Operands

# torch 2.13's name; releases before call it as the second does
_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor


def _group(operands: Operands) -> distributed.ProcessGroup:
    axis, ranks = operands.text("axis"), operands.integer("ranks")
    group = operands.context.groups.get(axis)
    if group is None:
        operands.refuse(f"a mesh axis of several ranks that run together: {', '.join(operands.context.groups) or 'none'}", axis)
    operands.require(distributed.get_world_size(group) == ranks, f"{ranks} ranks along {axis}")
    return group


def all_reduce(operands: Operands) -> Launch:
    """(x) -> the sum of all ranks' x along attribute `axis`; where kernels do it for few rows, of more than attribute `above`.

    It may be in place.
    """
    (x,), (out,) = operands.take(1, 1)
    operands.floating(x, out)
    operands.require(x.shape == out.shape and out.is_contiguous(), "operands of one shape, the result dense")
    group = _group(operands)

    in_place = x.data_ptr() == out.data_ptr()
    operands.require(not in_place or x.stride() == out.stride(), "operands that are the same, or apart")

    def run() -> None:
        if not in_place:
            out.copy_(x)
        distributed.all_reduce(out, group=group)

    return run


def all_gather(operands: Operands) -> Launch:
    """(x) -> the x of all `ranks` ranks along attribute `axis`, behind each other along `dimension`."""
    (x,), (out,) = operands.take(1, 1)
    group, ranks, dimension = _group(operands), operands.integer("ranks"), operands.integer("dimension")
    operands.require(x.dtype == out.dtype and 0 < dimension < x.dim(), "operands of one type, and one of x's columns")
    operands.shaped(out, *(size * ranks if at == dimension else size for at, size in enumerate(x.shape)))
    scratch = operands.context.scratch
    joined = scratch("all_gather", x.dtype, x.numel() * ranks, x.device).view(ranks * x.shape[0], *x.shape[1:])
    parts = joined.view(ranks, *x.shape)
    own = scratch("all_gather.own", x.dtype, x.numel(), x.device).view(x.shape)
    target = out.unflatten(dimension, (ranks, x.shape[dimension])).movedim(dimension, 0)

    def run() -> None:
        own.copy_(x)
        _gather(joined, own, group=group)
        target.copy_(parts)

    return run
