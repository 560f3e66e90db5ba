"""Rows to the ranks of their experts and back, as many as there are to send: every rank knows where all rows go."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, distributed

from .base import Launch, Operands
from .collective import group_of


def dispatch(operands: Operands) -> Launch:
    """(x[r, h], indices[R, k] i32) -> [R, h]: rows of all `ranks` ranks along attribute `axis`, r of each, that go to experts of
    this one; the others stay as they are. Ranks share `experts` out in order."""
    (x, indices), (out,) = operands.take(2, 1)
    ways = _Ways(operands, x, indices, out)

    def run() -> None:
        going, coming = ways.of_this_step()
        sent, came = ways.buffers(going, coming)
        torch.index_select(x, 0, torch.cat(going), out=sent)
        ways.exchange(came, coming, sent, going)
        out.index_copy_(0, torch.cat(coming), came)

    return run


def combine(operands: Operands) -> Launch:
    """(x[R, h], indices[R, k] i32) -> [r, h]: of each of this rank's rows the sum of what ranks whose experts it went to have of
    it, in float32 and in the order of ranks. Attributes of dispatch."""
    (x, indices), (out,) = operands.take(2, 1)
    operands.floating(x, out)
    ways = _Ways(operands, out, indices, x)

    def run() -> None:
        coming, going = ways.of_this_step()
        sent, came = ways.buffers(going, coming)
        torch.index_select(x, 0, torch.cat(going), out=sent)
        ways.exchange(came, coming, sent, going)
        total = ways.scratch("rows summed", torch.float32, out.numel()).view(out.shape).zero_()
        total.index_add_(0, torch.cat(coming), came.float())
        out.copy_(total)

    return run


class _Ways:
    """Where rows go: `part` is of this rank's rows, `whole` of those of all ranks, one after the other."""

    def __init__(self, operands: Operands, part: Tensor, indices: Tensor, whole: Tensor) -> None:
        self._group, self._ranks, experts = group_of(operands), operands.integer("ranks"), operands.integer("experts")
        operands.require(operands.integer("dimension") == 0, "rows along dimension 0")
        operands.typed(torch.int32, indices)
        same = part.ndim == whole.ndim == 2 and part.dtype == whole.dtype and part.shape[1] == whole.shape[1]
        rows = len(part) == -(-len(whole) // self._ranks) and len(indices) == len(whole) and indices.ndim == 2
        operands.require(same and rows, f"x of all rows and of one of {self._ranks} ranks, indices of all rows")
        operands.require(1 <= self._ranks <= experts, f"at least {self._ranks} experts")
        self.scratch, self._part, self._indices, self._whole = operands.context.scratch, part, indices, whole
        self._of_rank, self._place = -(-experts // self._ranks), distributed.get_rank(self._group)

    def of_this_step(self) -> tuple[list[Tensor], list[Tensor]]:
        """For each rank: numbers of this rank's rows that go to its experts; numbers in the whole of its rows that go to this
        rank's."""
        size, every = len(self._part), len(self._whole)
        goes = torch.zeros(every, self._ranks, dtype=torch.bool).scatter_(1, (self._indices // self._of_rank).long(), True)
        starts = [min(at * size, every) for at in range(self._ranks + 1)]
        own = goes[starts[self._place] : starts[self._place + 1]]
        here = goes[:, self._place]
        going = [own[:, rank].nonzero().view(-1) for rank in range(self._ranks)]
        coming = [here[start:stop].nonzero().view(-1) + start for start, stop in pairwise(starts)]
        return going, coming

    def buffers(self, going: list[Tensor], coming: list[Tensor]) -> tuple[Tensor, Tensor]:
        """For the rows that are sent and those that come, rank after rank."""
        width, dtype = self._part.shape[1], self._part.dtype
        most = max(len(self._whole), self._ranks * len(self._part)) * width
        found = []
        for name, rows in (("rows sent", going), ("rows come", coming)):
            count = sum(map(len, rows))
            found.append(self.scratch(name, dtype, most)[: count * width].view(count, width))
        return found[0], found[1]

    def exchange(self, came: Tensor, coming: list[Tensor], sent: Tensor, going: list[Tensor]) -> None:
        """As bytes, which every backend sends."""
        counts = [[len(rows) for rows in side] for side in (coming, going)]
        distributed.all_to_all_single(came.view(torch.uint8), sent.view(torch.uint8), *counts, group=self._group)
