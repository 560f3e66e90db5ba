"""The order of eviction: by expected reuse, within it the least recently used first. Everything is O(1), expiry amortised."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from .blocks import Reuse, Unit

Item = TypeVar("Item")


class Clock:
    """The time that expectations are measured against; it comes in from outside."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0.0


class EvictionOrder(Generic[Item]):
    """Items of units, one each. An expectation that is not met by `Unit.until` falls to `IDLE`, as the most recent there.

    Of one kind of reuse only the oldest item is looked at for that: kinds have one time to live, or are patient a little longer.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues = tuple(OrderedDict[Unit, Item]() for _ in Reuse)
        self._queue_of: dict[Unit, Reuse] = {}

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
        reuse = unit.reuse if unit.reuse <= Reuse.IDLE or unit.until > self._clock.now else Reuse.IDLE
        queue = self._queues[reuse]
        queue[unit] = item
        self._queue_of[unit] = reuse
        if first:
            queue.move_to_end(unit, last=False)

    def take(self, unit: Unit) -> Item:
        return self._queues[self._queue_of.pop(unit)].pop(unit)

    def lowest(self) -> Reuse | None:
        """The kind of what is evicted next; None when there is nothing."""
        self._expire()
        return next((reuse for reuse in Reuse if self._queues[reuse]), None)

    def first(self) -> Item | None:
        """What is evicted next, left in its place."""
        lowest = self.lowest()
        return None if lowest is None else next(iter(self._queues[lowest].values()))

    def pop(self) -> Item:
        """Take out what is evicted next. KeyError when there is nothing."""
        lowest = self.lowest()
        unit, item = self._queues[Reuse.IDLE if lowest is None else lowest].popitem(last=False)
        del self._queue_of[unit]
        return item

    def _expire(self) -> None:
        for reuse in (Reuse.HINTED, Reuse.USER, Reuse.TOOL, Reuse.SHARED):
            queue = self._queues[reuse]
            while queue and (unit := next(iter(queue))).until <= self._clock.now:
                self._queues[Reuse.IDLE][unit] = queue.pop(unit)
                self._queue_of[unit] = Reuse.IDLE
