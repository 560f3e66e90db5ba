"""Who sends which turn when: agents that wait for answers (closed loop), or a trace's own times (open loop)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Protocol

from ..traffic.session import Session


@dataclass(frozen=True, slots=True)
class Arrival:
    """A turn that a client sends: number `turn` of a session, at `seconds`."""

    seconds: float
    session: Session
    turn: int


class Clients(Protocol):
    @property
    def next_seconds(self) -> float:
        """When the next turn arrives; infinity when none will without an answer."""
        ...

    def take(self, until: float) -> list[Arrival]:
        """What has arrived by then, in order."""
        ...

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        """A client has its whole answer, or a refusal."""
        ...


class _Queue:
    """Arrivals by time; of equal times the first that was put in."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Arrival]] = []
        self._numbers = count()

    def put(self, arrival: Arrival) -> None:
        heapq.heappush(self._heap, (arrival.seconds, next(self._numbers), arrival))

    @property
    def next_seconds(self) -> float:
        return self._heap[0][0] if self._heap else inf

    def take(self, until: float) -> list[Arrival]:
        found: list[Arrival] = []
        while self._heap and self._heap[0][0] <= until:
            found.append(heapq.heappop(self._heap)[2])
        return found


class Agents:
    """`agents` sessions at a time; who ends one begins the next at once. A turn comes its gap after the answer before it.

    Gaps are `time_scale` times as long as in the trace.
    """

    def __init__(self, sessions: Sequence[Session], agents: int, time_scale: float = 1.0) -> None:
        self._queue, self._scale = _Queue(), time_scale
        self._sessions: Iterator[Session] = iter(sessions)
        for _ in range(agents):
            self._begin(0.0)

    @property
    def next_seconds(self) -> float:
        return self._queue.next_seconds

    def take(self, until: float) -> list[Arrival]:
        return self._queue.take(until)

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        if turn + 1 < len(session.turns):
            gap = session.turns[turn + 1].gap_seconds * self._scale
            self._queue.put(Arrival(seconds + gap, session, turn + 1))
        else:
            self._begin(seconds)

    def _begin(self, seconds: float) -> None:
        session = next(self._sessions, None)
        if session is not None:
            self._queue.put(Arrival(seconds, session, 0))


class Arrivals:
    """Turns when the trace had them, but none before the answer to the one before it in its session: it is part of the prompt.
    Times are `time_scale` times as long."""

    def __init__(self, sessions: Sequence[Session], time_scale: float = 1.0) -> None:
        self._queue, self._scale = _Queue(), time_scale
        for session in sessions:
            self._put(session, 0, 0.0)

    @property
    def next_seconds(self) -> float:
        return self._queue.next_seconds

    def take(self, until: float) -> list[Arrival]:
        return self._queue.take(until)

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        if turn + 1 < len(session.turns):
            self._put(session, turn + 1, seconds)

    def _put(self, session: Session, turn: int, earliest: float) -> None:
        self._queue.put(Arrival(max(earliest, session.turns[turn].arrival_seconds * self._scale), session, turn))


class Together:
    """Several kinds of clients on one machine. Sessions are told apart by their ids."""

    def __init__(self, kinds: Sequence[tuple[Clients, Sequence[Session]]]) -> None:
        self._kinds = [clients for clients, _ in kinds]
        self._of = {session.session_id: clients for clients, sessions in kinds for session in sessions}

    @property
    def next_seconds(self) -> float:
        return min(clients.next_seconds for clients in self._kinds)

    def take(self, until: float) -> list[Arrival]:
        return sorted((arrival for clients in self._kinds for arrival in clients.take(until)), key=lambda item: item.seconds)

    def ended(self, session: Session, turn: int, seconds: float) -> None:
        self._of[session.session_id].ended(session, turn, seconds)
