"""Collectives over the ranks along a mesh axis."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, distributed

from ..overlap import Meeting
from .base import Launch, Operands

# torch 2.13's name; releases before call it as the second does
_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor


def group_of(operands: Operands) -> distributed.ProcessGroup:
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
    group = group_of(operands)

    in_place = x.data_ptr() == out.data_ptr()
    operands.require(not in_place or x.stride() == out.stride(), "operands that are the same, or apart")

    def begin(wait: bool) -> distributed.Work | None:
        if not in_place:
            out.copy_(x)
        return distributed.all_reduce(out, group=group, async_op=not wait)

    return _meeting(begin, lambda: None)


def all_gather(operands: Operands) -> Launch:
    """(x) -> the x of all `ranks` ranks along attribute `axis`, one after the other along `dimension`, rows too many left out.

    Where kernels do it for few rows, of more than attribute `above`.
    """
    (x,), (out,) = operands.take(1, 1)
    parts = _Parts(operands, x, out)
    own = parts.dense(x)

    def begin(wait: bool) -> distributed.Work | None:
        if own is not x:
            own.copy_(x)
        return _gather(parts.joined, own, group=parts.group, async_op=not wait)

    return _meeting(begin, lambda: parts.spread(out), parts.shares)


def reduce_scatter(operands: Operands) -> Launch:
    """(x) -> this rank's part, along `dimension`, of the sum of the x of all `ranks` ranks along attribute `axis`.

    Rows are filled up with zeros where ranks do not divide them.
    """
    (x,), (out,) = operands.take(1, 1)
    operands.floating(x, out)
    parts = _Parts(operands, out, x)
    own = parts.dense(out)

    def begin(wait: bool) -> distributed.Work | None:
        parts.collect(x)
        return _scatter(own, parts.joined, group=parts.group, async_op=not wait)

    def end() -> None:
        if own is not out:
            out.copy_(own)

    return _meeting(begin, end, parts.shares)


def take_part(operands: Operands) -> Launch:
    """(x) -> this rank's part of x, along `dimension`, among those of all `ranks` ranks along attribute `axis`; no rank is asked.

    Rows are filled up with zeros where ranks do not divide them.
    """
    (x,), (out,) = operands.take(1, 1)
    parts = _Parts(operands, out, x, meets=False)
    size = out.shape[parts.dimension]
    start = min(parts.place * size, x.shape[parts.dimension])
    count = min(size, x.shape[parts.dimension] - start)
    source = x.narrow(parts.dimension, start, count)
    target, rest = out.narrow(parts.dimension, 0, count), out.narrow(parts.dimension, count, size - count)

    def run() -> None:
        target.copy_(source)
        rest.zero_()

    return run


def _meeting(begin: Callable[[bool], distributed.Work | None], end: Launch, shares: bool = False) -> Meeting:
    """`begin` starts it, and waits for it if told to; `end` is what is to be done with what came."""
    works: list[distributed.Work] = []

    def started() -> None:
        work = begin(False)
        if work is not None:
            works.append(work)

    def finished() -> None:
        if works:
            works.pop().wait()
        end()

    def whole() -> None:
        begin(True)
        end()

    return Meeting(whole, started, finished, shares)


class _Parts:
    """A whole and a rank's part of it along a dimension: what lies between them and the dense arrays that ranks exchange."""

    def __init__(self, operands: Operands, part: Tensor, whole: Tensor, *, meets: bool = True) -> None:
        self.group, ranks, self.dimension = group_of(operands), operands.integer("ranks"), operands.integer("dimension")
        same = part.dtype == whole.dtype and part.dim() == whole.dim() and 0 <= self.dimension < part.dim()
        operands.require(same, "operands of one type and rank, and one of their dimensions")
        size, every = part.shape[self.dimension], whole.shape[self.dimension]
        fits = size == -(-every // ranks) if self.dimension == 0 else size * ranks == every
        others = all(at == self.dimension or part.shape[at] == extent for at, extent in enumerate(whole.shape))
        operands.require(fits and others, f"a whole and one of its {ranks} parts along dimension {self.dimension}")
        self.place = distributed.get_rank(self.group)
        self._scratch = operands.context.scratch
        self.shares = False
        """Whether it uses memory that is not its own."""
        if not meets:
            return
        # equal parts, one behind the other: the whole itself where it is that already
        self._is_whole = self.dimension == 0 and size * ranks == every and whole.is_contiguous()
        self.joined = whole
        if not self._is_whole:
            self.shares = True
            joined = self._scratch("parts", part.dtype, part.numel() * ranks, part.device)
            self.joined = joined.view(ranks * part.shape[0], *part.shape[1:])
            if self.dimension == 0:
                self._used, self._rest = self.joined[:every], self.joined[every:]
            else:
                self._used, self._rest = joined.view(ranks, *part.shape), joined[:0]
                self._split = whole.unflatten(self.dimension, (ranks, size)).movedim(self.dimension, 0)

    def dense(self, part: Tensor) -> Tensor:
        """The part itself, or where it lies in between."""
        if part.is_contiguous():
            return part
        self.shares = True
        return self._scratch("part", part.dtype, part.numel(), part.device).view(part.shape)

    def spread(self, whole: Tensor) -> None:
        """From the parts to the whole."""
        if not self._is_whole:
            (whole if self.dimension == 0 else self._split).copy_(self._used)

    def collect(self, whole: Tensor) -> None:
        """From the whole to the parts."""
        if not self._is_whole:
            self._used.copy_(whole if self.dimension == 0 else self._split)
            self._rest.zero_()
