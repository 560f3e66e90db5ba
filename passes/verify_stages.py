"""Proves a pipeline cut into stages: what a stage sends the next one receives, and no rank waits for ever.

Trusts nothing that cut them. The second part plays the ranks' events, every collective of the inner axes among them, under the
strictest rule: who sends waits until the other side receives. What ends so ends under every rule that buffers more. Only tokens,
which travel beside the programs in threads of their own, wait at their receiver.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.sharding import COLLECTIVES
from ..plans.mesh import STAGES


class StageMismatch(ValueError):
    """Stages that do not fit together; says which and where."""


@dataclass(frozen=True)
class Event:
    """Something that a rank does together with others: `what` it is must be the same for all of `ranks`, which meet in it."""

    what: str
    ranks: tuple[int, ...]

    @property
    def counterpart(self) -> Event:
        """What the other ranks do meanwhile."""
        swapped = {"send": "receive", "receive": "send"}
        kind, _, rest = self.what.partition(" ")
        return Event(f"{swapped.get(kind, kind)} {rest}", self.ranks)


def verify_stages(stages: Sequence[ir.Module], mesh: Sequence[tuple[str, int]], steps: int | None = None) -> None:
    """Check modules of consecutive stages. `mesh`: all axes with their sizes, the pipeline's the first; `steps` are played
    (default: enough to fill the pipeline twice).

    Raises StageMismatch.
    """
    if mesh[0] != (STAGES, len(stages)):
        raise StageMismatch(f"{len(stages)} stages on a mesh of {dict(mesh)}")
    for number, module in enumerate(stages):
        _check_ends(module, number, len(stages))
    for number, (module, following) in enumerate(itertools.pairwise(stages)):
        _check_border(_crossings(module, "ts.send"), _crossings(following, "ts.receive"), number)
    play(rank_events(stages, mesh), len(stages), 2 * len(stages) if steps is None else steps)


def rank_events(stages: Sequence[ir.Module], mesh: Sequence[tuple[str, int]]) -> dict[int, list[Event]]:
    """By rank: what it does in a step, in order; ranks count like digits, the last axis fastest."""
    axes = [name for name, _ in mesh]
    places = list(itertools.product(*(range(size) for _, size in mesh)))
    number_of = {place: number for number, place in enumerate(places)}
    found: dict[int, list[Event]] = {}
    for place, number in number_of.items():
        events: list[Event] = []
        for operation in _in_order(modules.step_block(stages[place[0]])):
            at = axes.index(modules.text_attribute(operation, "axis"))
            if operation.name in COLLECTIVES:
                ranks = tuple(number_of[other] for other in places if _same_but(place, other, at))
                where = f"at {modules.label_of(operation)} of {_type(operation.results[0])} along {axes[at]}"
                events.append(Event(f"{operation.name} {where}", ranks))
                continue
            onward = operation.name == "ts.send"
            peer = number_of.get((*place[:at], place[at] + (1 if onward else -1), *place[at + 1 :]))
            if peer is None:
                raise StageMismatch(f"rank {number} would {operation.name} beyond the end of axis {axes[at]}")
            value = operation.operands[0] if onward else operation.results[0]
            ends = (number, peer) if onward else (peer, number)
            events.append(Event(f"{'send' if onward else 'receive'} {_type(value)}", ends))
        found[number] = events
    return found


def play(events: Mapping[int, Sequence[Event]], depth: int, steps: int) -> None:
    """Play `steps` steps, at most `depth` of them in flight: the first rank begins one when the last one's tokens of the step
    that was `depth` before are back.

    Raises StageMismatch where ranks wait for each other, saying for what.
    """
    last = max(events)
    queues = {rank: iter(_of_run(rank, of_step, last, depth, steps)) for rank, of_step in events.items()}
    waiting = {rank: next(queue, None) for rank, queue in queues.items()}
    posted: set[str] = set()
    while any(waiting.values()):
        met = _meeting(waiting, posted)
        if met is None:
            found = "; ".join(f"rank {rank} at {event.what} of ranks {event.ranks}" for rank, event in waiting.items() if event)
            raise StageMismatch(f"no rank can go on: {found}")
        for rank in met:
            waiting[rank] = next(queues[rank], None)


def _meeting(waiting: Mapping[int, Event | None], posted: set[str]) -> tuple[int, ...] | None:
    """The ranks of an event that all of them wait in; `posted` are tokens that are on their way or there."""
    for rank, event in waiting.items():
        if event is None:
            continue
        kind, _, tokens = event.what.partition(" ")
        if kind == "post":
            posted.add(tokens)
        if kind in {"post", "await"}:
            if tokens in posted:
                return (rank,)
            continue
        others = {waiting.get(other) for other in event.ranks if other != rank}
        if others <= {event.counterpart}:
            return event.ranks
    return None


def _of_run(rank: int, of_step: Sequence[Event], last: int, depth: int, steps: int) -> Iterator[Event]:
    """A rank's events of a whole run: of each step those of its program; the last rank hands its tokens to the first."""
    for step in range(steps):
        if rank == 0 and step >= depth:
            yield Event(f"await tokens of step {step - depth}", (0,))
        yield from of_step
        if rank == last:
            yield Event(f"post tokens of step {step}", (last,))
    if rank == 0:
        for step in range(max(0, steps - depth), steps):
            yield Event(f"await tokens of step {step}", (0,))


def _in_order(block: ir.Block) -> Iterator[ir.Operation]:
    """Every run of an operation in which ranks meet."""
    for view in block.operations:
        operation = view.operation
        if operation.name == "ts.repeat":
            for _ in range(modules.int_attribute(operation, "count")):
                yield from _in_order(modules.body_of(operation))
        elif operation.name in COLLECTIVES or operation.name in {"ts.send", "ts.receive"}:
            yield operation


def _check_ends(module: ir.Module, number: int, count: int) -> None:
    block = modules.step_block(module)
    returned = list(block.operations)[-1].operation.operands
    if (len(returned) == 1) != (number == count - 1):
        raise StageMismatch(f"stage {number} of {count} returns {len(returned)} values; the last one returns the logits, alone")
    for operation in modules.walk(block):
        if operation.name in {"ts.send", "ts.receive"}:
            if modules.text_attribute(operation, "axis") != STAGES:
                raise StageMismatch(f"stage {number}: {operation.name} along {modules.text_attribute(operation, 'axis')}")
            if operation.parent is not None and operation.parent.name == "ts.repeat":
                raise StageMismatch(f"stage {number}: {operation.name} inside of layers")
    at_ends = {0: "ts.receive", count - 1: "ts.send"}
    for end, name in at_ends.items():
        if number == end and _crossings(module, name):
            raise StageMismatch(f"stage {number} of {count} has a {name}, but no stage on that side")


def _check_border(sent: Sequence[str], received: Sequence[str], number: int) -> None:
    if len(sent) != len(received):
        raise StageMismatch(f"stage {number} sends {len(sent)} values, stage {number + 1} receives {len(received)}")
    for at, (one, other) in enumerate(zip(sent, received, strict=True)):
        if one != other:
            raise StageMismatch(f"value {at} that stage {number} sends is {one}, stage {number + 1} receives {other}")


def _crossings(module: ir.Module, name: str) -> list[str]:
    """Name, type and placement of each value that a stage sends, or receives."""
    found = [item for item in modules.walk(modules.step_block(module)) if item.name == name]
    return [f"{modules.text_attribute(item, 'sym')}: {_type((*item.operands, *item.results)[0])}" for item in found]


def _type(value: ir.Value) -> str:
    return str(value.type)


def _same_but(one: Sequence[int], other: Sequence[int], at: int) -> bool:
    return all(place == found or number == at for number, (place, found) in enumerate(zip(one, other, strict=True)))
