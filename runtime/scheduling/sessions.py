"""Sessions, and what is expected of them: how large they get, when they come back, what their place in the pool is worth."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from .errors import IntegrityError
from .request import TurnEnd
from .sequence import Sequence

_MOST_SESSIONS = 8192
_EXPECTED_GAP: dict[TurnEnd | None, float] = {"tool_call": 10.0, None: 30.0, "end_of_turn": 120.0}
"""Seconds until a session's next turn, before it has shown what is usual for it."""
PATIENCE = 2.0
_LEAST_GAP = 1e-3
_LEARNING = 0.5
"""Of what was expected and what happened, how much the last counts: of growth in sum, of gaps, which are now and then very long,
in product."""


class Session:
    """A conversation: `tokens` of context, of which `shared` are another one's; it is expected to grow by `growth` in a turn.

    `requests` are unfinished, `running` of them hold a slot. While there are none, it is idle `since` the last one ended.
    `recompute` seconds bring its context back; to hold its place is worth that for `worth` seconds. `counted` is its part of the
    admitted tokens.
    """

    __slots__ = (
        "admitted",
        "closed",
        "counted",
        "end",
        "gaps",
        "growth",
        "name",
        "priority",
        "recompute",
        "requests",
        "running",
        "shared",
        "since",
        "tokens",
        "turns",
        "worth",
    )

    def __init__(self, name: str, growth: float) -> None:
        self.name, self.growth = name, growth
        self.requests: dict[str, Sequence] = {}
        self.gaps: dict[TurnEnd | None, float] = {}
        self.end: TurnEnd | None = None
        self.admitted = self.closed = False
        self.tokens = self.shared = self.turns = self.running = self.priority = 0
        self.since = self.recompute = self.worth = self.counted = 0.0

    @property
    def footprint(self) -> float:
        return max(self.tokens - self.shared, 0) + self.growth

    @property
    def gap(self) -> float:
        return self.gaps.get(self.end, _EXPECTED_GAP[self.end])

    def remaining(self, now: float) -> float:
        """Seconds until it is expected back; who is late is expected to take as long again."""
        return max(self.since + self.gap - now, now - self.since)

    @property
    def held_until(self) -> float:
        """Its place is kept until then though others wait; who takes much longer than that is worth has to give it up at once."""
        return self.since + (self.worth if self.gap <= PATIENCE * self.worth else 0.0)

    def given_up_at(self, machine_idle: bool) -> float:
        """When another session that waits may have its place; on an idle machine as soon as its context could be computed."""
        return min(self.held_until, self.since + PATIENCE * self.recompute) if machine_idle else self.held_until


class SessionTable:
    """Sessions that are admitted, have requests, or were active lately; their number is bounded. `capacity` is in tokens,
    `recompute_seconds`(tokens) what it takes to compute a context of so many. `admitted` are those that are."""

    def __init__(self, capacity: int, recompute_seconds: Callable[[int], float]) -> None:
        self.capacity, self._recompute_seconds = capacity, recompute_seconds
        self.admitted_tokens = self._growth = 0.0
        self.version = 0
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self.admitted: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._sessions.values())

    def of(self, sequence: Sequence) -> Session:
        return self._sessions[_name(sequence)]

    def find(self, session_id: str) -> Session | None:
        return self._sessions.get(session_id) if session_id else None

    def submit(self, sequence: Sequence, now: float) -> Session:
        """A turn of a session came."""
        name = _name(sequence)
        session = self._sessions.get(name)
        if session is None:
            self._trim()
            session = self._sessions[name] = Session(name, self._growth if sequence.request.session_id else 0.0)
        elif not session.requests:
            gap, known = max(now - session.since, _LEAST_GAP), session.gaps.get(session.end)
            session.gaps[session.end] = gap if known is None else known ** (1 - _LEARNING) * gap**_LEARNING
        session.requests[sequence.request_id] = sequence
        session.priority, session.closed = sequence.request.priority, False
        self._sessions.move_to_end(name)
        self._changed(session)
        return session

    def started(self, sequence: Sequence) -> None:
        """It has a slot, so its session is admitted."""
        session = self.of(sequence)
        session.running += 1
        session.admitted = True
        session.tokens = max(session.tokens, sequence.length)
        self._changed(session)

    def stopped(self, sequence: Sequence) -> None:
        """It gave its slot back."""
        session = self.of(sequence)
        session.running -= 1
        self._changed(session)

    def finished(self, sequence: Sequence, length: int, now: float) -> None:
        """A turn ended, with `length` tokens of context."""
        session = self.of(sequence)
        del session.requests[sequence.request_id]
        if sequence.had_rows:
            self._learn(session, length)
        session.since, session.end = now, None
        if not session.requests and (session.closed or not sequence.request.session_id):
            return self.forget(session)
        return self._changed(session)

    def end_turn(self, session: Session, end: TurnEnd) -> None:
        session.end = end
        self._changed(session)

    def close(self, session: Session) -> None:
        """No turn will follow."""
        session.closed = True
        if not session.requests:
            self.forget(session)

    def admit(self, session: Session) -> None:
        session.admitted = True
        self._changed(session)

    def park(self, session: Session) -> None:
        session.admitted = False
        self._changed(session)

    def forget(self, session: Session) -> None:
        session.admitted = False
        self._changed(session)
        del self._sessions[session.name]

    def check_integrity(self) -> None:
        """Raises IntegrityError where the admitted tokens are not those of the admitted sessions."""
        total = sum(session.footprint for session in self if session.admitted)
        if self.admitted.keys() != {session.name for session in self if session.admitted}:
            raise IntegrityError("sessions are listed as admitted that are not, or the other way round")
        if abs(total - self.admitted_tokens) > 1e-6 * max(1.0, total):
            raise IntegrityError(f"{self.admitted_tokens} admitted tokens are counted, sessions have {total}")

    def _learn(self, session: Session, length: int) -> None:
        if session.turns:
            session.growth += _LEARNING * (max(length - session.tokens, 0) - session.growth)
            self._growth += _LEARNING * (session.growth - self._growth)
        session.turns += 1
        session.tokens = length
        session.recompute = self._recompute_seconds(max(length, 1))
        session.worth = session.recompute * self.capacity / max(session.footprint, 1.0)

    def _changed(self, session: Session) -> None:
        counted = session.footprint if session.admitted else 0.0
        self.admitted_tokens += counted - session.counted
        if session.admitted:
            self.admitted[session.name] = session
        else:
            self.admitted.pop(session.name, None)
        session.counted = counted
        self.version += 1

    def _trim(self) -> None:
        """Room for one more: of those without requests the one that was active longest ago goes."""
        if len(self._sessions) >= _MOST_SESSIONS:
            idle = next((session for session in self._sessions.values() if not session.requests), None)
            if idle is not None:
                self.forget(idle)


def _name(sequence: Sequence) -> str:
    """A request without a session is one of its own."""
    return sequence.request.session_id or f"\0{sequence.request_id}"
