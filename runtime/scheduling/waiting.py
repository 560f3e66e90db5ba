"""The waiting queue: whose turn it is among tenants, then by rank. O(log n) in and out, O(1) to drop."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

from .fairness import TenantShares
from .sequence import Sequence, Status

_COMPACT_FROM = 64
_TOP = 15
"""Entries at the top of a heap that are looked at: four levels of it."""


class RankedHeap:
    """Waiting sequences that are `parked`, or those that are not, lowest rank first. Who is no longer one of them is skipped when
    it comes to the top.

    Dropped entries are swept out when they are more than half of the heap, so aborts cannot pile up behind a blocked head.
    """

    def __init__(self, parked: bool) -> None:
        self._parked = parked
        self._heap: list[tuple[tuple[float, int, int], int, Sequence]] = []
        self._numbers = count()

    def __len__(self) -> int:
        """Entries, dropped ones included."""
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        heapq.heappush(self._heap, (sequence.rank, next(self._numbers), sequence))

    def first(self) -> Sequence | None:
        while self._heap and not self._holds(self._heap[0][2]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def top(self) -> list[Sequence]:
        """Some of the first, in no order: a bounded number."""
        return [entry[2] for entry in self._heap[:_TOP] if self._holds(entry[2])]

    def sweep(self, waiting: int) -> None:
        """`waiting` sequences of it are left."""
        if len(self._heap) > max(_COMPACT_FROM, 2 * waiting):
            self._heap = [*{id(entry[2]): entry for entry in self._heap if self._holds(entry[2])}.values()]
            heapq.heapify(self._heap)

    def _holds(self, sequence: Sequence) -> bool:
        return sequence.status is Status.WAITING and sequence.parked == self._parked


@dataclass(slots=True)
class _Tenant:
    heap: RankedHeap
    waiting: int = 0


class WaitingQueue:
    """Whose turn it is of the waiting requests that are `parked`, or of those that are not: the tenant's of the lowest tag, of
    its requests the lowest rank; a step of priority is worth `aging_seconds` of tag. One that is due more than `patience_seconds`
    before who was found so goes first.

    With `shares` None, or one tenant waiting, the order is that of ranks.
    """

    def __init__(self, parked: bool, shares: TenantShares | None, aging_seconds: float, patience_seconds: float) -> None:
        self._parked = parked
        self._shares, self._aging, self._patience = shares, aging_seconds, patience_seconds
        self._all = RankedHeap(parked)
        self._tenants: dict[str, _Tenant] = {}
        self._turns: list[tuple[float, int, str]] = []
        self._numbers = count()
        self._waiting = 0
        self._next: Sequence | None = None  # None: to be found

    def __len__(self) -> int:
        return self._waiting

    def push(self, sequence: Sequence) -> None:
        self._next = None
        self._all.push(sequence)
        self._waiting += 1
        if self._shares is not None:
            tenant = self._tenants.setdefault(sequence.request.tenant, _Tenant(RankedHeap(self._parked)))
            tenant.heap.push(sequence)
            tenant.waiting += 1
            self.refresh(sequence.request.tenant)

    def first(self) -> Sequence | None:
        """Who is next. Nothing but `push`, `dropped` and `refresh` changes it."""
        if self._next is None and self._waiting:
            self._next = self._find_first()
        return self._next

    def _find_first(self) -> Sequence | None:
        oldest = self._all.first()
        if oldest is None or len(self._tenants) < 2:
            return oldest
        fair = self._fair()
        return oldest if oldest.due + self._patience < fair.due else fair

    def alike(self, first: Sequence, seconds: float) -> list[Sequence]:
        """Of those near the top that are of the first one's tenant and priority, who is due within so many seconds of it."""
        tenant, priority = first.request.tenant, first.request.priority
        heap = self._all if self._shares is None else self._tenants[tenant].heap
        found = {id(other): other for other in heap.top() if other.due <= first.due + seconds}
        return [other for other in found.values() if other.request.priority == priority and other.request.tenant == tenant]

    def dropped(self, sequence: Sequence) -> None:
        """A waiting sequence has just been given another status where it stood."""
        self._next = None
        self._waiting -= 1
        self._all.sweep(self._waiting)
        if self._shares is not None:
            name = sequence.request.tenant
            tenant = self._tenants[name]
            tenant.waiting -= 1
            tenant.heap.sweep(tenant.waiting)
            if tenant.waiting:
                self.refresh(name)
            else:
                del self._tenants[name]

    def refresh(self, name: str) -> None:
        """The tenant's tag, or its first request, may have changed."""
        self._next = None
        if name in self._tenants:
            heapq.heappush(self._turns, (self._turn(name), next(self._numbers), name))
            if len(self._turns) > max(_COMPACT_FROM, 4 * len(self._tenants)):
                self._turns = [(self._turn(tenant), next(self._numbers), tenant) for tenant in self._tenants]
                heapq.heapify(self._turns)

    def _fair(self) -> Sequence:
        """The request of the tenant whose turn it is. Entries whose time has passed are put right when they come to the top; a
        turn that became earlier has an entry of its own."""
        while True:
            turn, _, name = self._turns[0]
            if name not in self._tenants:
                heapq.heappop(self._turns)
            elif turn != self._turn(name):
                heapq.heapreplace(self._turns, (self._turn(name), next(self._numbers), name))
            else:
                return self._head(name)

    def _head(self, name: str) -> Sequence:
        head = self._tenants[name].heap.first()
        assert head is not None
        return head

    def _turn(self, name: str) -> float:
        head = self._head(name)
        assert self._shares is not None
        tag = self._shares.tag(name) if head.start_tag is None else head.start_tag
        return tag + self._aging * head.request.priority
