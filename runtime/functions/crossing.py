"""What goes from a stage of a pipeline to the next."""

from __future__ import annotations

from torch import distributed

from .base import Launch, Operands

_STRETCHES = 2
"""A stage goes on while what it sent is on its way; it waits once that many values are."""


def send(operands: Operands) -> Launch:
    """(x) -> (): to the rank behind this one along attribute `axis`."""
    (x,), () = operands.take(1, 0)
    group, place = _place(operands)
    operands.require(place + 1 < distributed.get_world_size(group), "a rank behind this one")
    scratch = operands.context.scratch
    on_host = x.device.type == "cpu"
    stretches = [scratch(f"send.{turn}", x.dtype, x.numel(), x.device).view(x.shape) for turn in range(_STRETCHES)]
    sending = operands.context.shared("sending", _Sending, _Sending)

    def run() -> None:
        turn = sending.next() if on_host else 0
        stretches[turn].copy_(x)
        if on_host:
            sending.works[turn] = distributed.isend(stretches[turn], group=group, group_dst=place + 1)
        else:  # in the order of the stream, which the host does not wait for
            distributed.send(stretches[turn], group=group, group_dst=place + 1)

    return run


def receive(operands: Operands) -> Launch:
    """() -> (x): from the rank before this one along attribute `axis`, what it sends next."""
    (), (out,) = operands.take(0, 1)
    group, place = _place(operands)
    operands.require(place > 0, "a rank before this one")
    operands.require(out.is_contiguous(), "a dense result")

    def run() -> None:
        distributed.recv(out, group=group, group_src=place - 1)

    return run


class _Sending:
    """What is on its way, by stretch; the longest on its way goes first."""

    def __init__(self) -> None:
        self.works: list[distributed.Work | None] = [None] * _STRETCHES
        self._turn = 0

    def next(self) -> int:
        """A stretch that nothing needs any more."""
        self._turn = (self._turn + 1) % _STRETCHES
        work = self.works[self._turn]
        if work is not None:
            work.wait()
        return self._turn


def _place(operands: Operands) -> tuple[distributed.ProcessGroup, int]:
    """This rank's group along the axis, and its place there."""
    axis = operands.text("axis")
    group = operands.context.groups.get(axis)
    if group is None:
        operands.refuse(f"a mesh axis of several ranks that run together: {', '.join(operands.context.groups) or 'none'}", axis)
    return group, distributed.get_rank(group)
