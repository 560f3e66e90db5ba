"""The order of eviction: by expected reuse, within it the least recently used first. Everything is O(1), expiry amortised."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from .blocks import Reuse, Unit

Item = TypeVar("Item")

_NEVER = float("nan")

SECONDS = (0.0, 0.0, 0.0, 300.0, 60.0, 900.0)
"""How long an expectation holds, by `Reuse`; hints have their own. Of agents' tool calls 88 % come back within 60 s, and half of
their users within 127 s."""

_, _IDLE, _HINTED, _USER, _TOOL, _SHARED = Reuse  # members are slow to look up by name


class Clock:
    """The time that expectations are measured against; it comes in from outside."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


def standing(unit: Unit, now: float) -> Reuse:
    """What is still expected of a unit: when a tool was too slow, as of a person; then as its client wished; then nothing."""
    reuse, age = unit.reuse, now - unit.since
    if reuse <= _IDLE:
        return reuse
    if age < SECONDS[reuse]:
        return reuse
    if reuse >= _TOOL and age < SECONDS[_USER]:
        return _USER
    return _HINTED if age < unit.hint else _IDLE


class EvictionOrder(Generic[Item]):
    """Items of units, one each. An expectation that is not met in time falls (`standing`), as the most recent of what it becomes.

    Of each kind only the oldest is looked at for that, so that one with a long hint may cover shorter ones behind it.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues = tuple(OrderedDict[Unit, Item]() for _ in Reuse)
        self._by_reuse = [(reuse, self._queues[reuse]) for reuse in Reuse]
        self._queue_of: dict[Unit, Reuse] = {}
        self._looked = [_NEVER for _ in Reuse]  # when each kind's oldest was looked at; _NEVER where it is another since

    def __len__(self) -> int:
        return len(self._queue_of)

    def __contains__(self, unit: Unit) -> bool:
        return unit in self._queue_of

    def __iter__(self) -> Iterator[Item]:
        """What is evicted first comes first."""
        for queue in self._queues:
            yield from queue.values()

    def add(self, unit: Unit, item: Item, first: bool = False) -> None:
        """The most recent of its kind; the least recent with `first`."""
        reuse = standing(unit, self._clock.now)
        queue = self._queues[reuse]
        queue[unit] = item
        self._queue_of[unit] = reuse
        if first:
            queue.move_to_end(unit, last=False)

    def take(self, unit: Unit) -> Item:
        reuse = self._queue_of.pop(unit)
        self._looked[reuse] = _NEVER
        return self._queues[reuse].pop(unit)

    def discard(self, unit: Unit) -> None:
        """Take it out if it is there."""
        if unit in self._queue_of:
            self.take(unit)

    def lowest(self) -> Reuse | None:
        """The kind of what is evicted next; None when there is nothing."""
        self._expire()
        for reuse, queue in self._by_reuse:
            if queue:
                return reuse
        return None

    def kinds(self) -> list[tuple[Reuse, int]]:
        """How many there are of each kind that there is, lowest first."""
        self._expire()
        return [(reuse, len(queue)) for reuse, queue in self._by_reuse if queue]

    def first(self, kind: Reuse | None = None) -> Item | None:
        """What is evicted next, of this kind if one is named, left in its place."""
        lowest = self.lowest() if kind is None else kind
        return None if lowest is None else next(iter(self._queues[lowest].values()))

    def pop(self, kind: Reuse | None = None) -> Item:
        """Take out what is evicted next, of this kind if one is named. KeyError when there is nothing."""
        lowest = self.lowest() if kind is None else kind
        if lowest is None:
            raise KeyError("nothing can be evicted")
        unit, item = self._queues[lowest].popitem(last=False)
        self._looked[lowest] = _NEVER
        del self._queue_of[unit]
        return item

    def _expire(self) -> None:
        now, looked = self._clock.now, self._looked
        for reuse in (_SHARED, _TOOL, _USER, _HINTED):
            if looked[reuse] == now:
                continue
            looked[reuse], queue = now, self._queues[reuse]
            while queue and (fallen := standing(unit := next(iter(queue)), now)) is not reuse:
                self._queues[fallen][unit] = queue.pop(unit)
                self._queue_of[unit] = fallen
