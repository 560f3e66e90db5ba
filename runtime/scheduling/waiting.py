"""The waiting queue: best (priority, arrival) first, O(log n) in and out, O(1) to drop."""

from __future__ import annotations

import heapq

from .sequence import Sequence, Status

_COMPACT_FROM = 64


class WaitingQueue:
    """A heap with lazy deletion: who is no longer waiting is skipped when it comes to the top.

    Dropped entries are swept out when they are more than half of the heap, so aborts cannot pile up behind a blocked head.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int], Sequence]] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, sequence))
        self._waiting += 1

    def first(self) -> Sequence | None:
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Sequence | None:
        """Take the first out; the caller gives it another status."""
        sequence = self.first()
        if sequence is not None:
            heapq.heappop(self._heap)
            self._waiting -= 1
        return sequence

    def dropped(self) -> None:
        """One waiting sequence has just been given another status where it stood."""
        self._waiting -= 1
        if len(self._heap) > max(_COMPACT_FROM, 2 * self._waiting):
            self._heap = [entry for entry in self._heap if entry[1].status is Status.WAITING]
            heapq.heapify(self._heap)
