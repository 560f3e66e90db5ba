"""Who waits, and whose turn it is: turns of admitted sessions, and those of sessions that wait to be admitted. Policy rule 9."""

from __future__ import annotations

from collections.abc import Callable

from .fairness import TenantShares
from .losses import LossBudget
from .policy import Policy
from .sequence import Sequence, Status
from .sessions import PATIENCE, Session, SessionTable
from .waiting import WaitingQueue


class Admission:
    """The waiting requests. `table` is None where requests, not sessions, are admitted. `gave_up`(session's name) is told of each
    that gave up its place."""

    def __init__(
        self,
        rules: Policy,
        shares: TenantShares | None,
        table: SessionTable | None,
        losses: LossBudget,
        gave_up: Callable[[str], None],
    ) -> None:
        self._rules, self._table, self._losses, self._gave_up = rules, table, losses, gave_up
        self._ready = WaitingQueue(False, shares, rules.aging_seconds, rules.patience_seconds)
        self._parked = WaitingQueue(True, shares, rules.aging_seconds, rules.patience_seconds)
        self._blocked: tuple[Session, int, bool, bool] | None = None
        self._fitted = -1
        self.wake: float | None = None
        """When a parked session may take the place of one that is idle until then; None: time changes nothing."""

    def __len__(self) -> int:
        return len(self._ready) + len(self._parked)

    @property
    def parked(self) -> int:
        """Requests that wait for their session to be admitted."""
        return len(self._parked)

    def push(self, sequence: Sequence) -> None:
        """A request came, or was preempted. One without a session is held up by the pool alone."""
        table = self._table
        sequence.parked = table is not None and bool(sequence.request.session_id) and not table.of(sequence).admitted
        self._queue(sequence).push(sequence)

    def dropped(self, sequence: Sequence) -> None:
        """A waiting sequence has just been given another status."""
        self._queue(sequence).dropped(sequence)

    def alike(self, first: Sequence, seconds: float) -> list[Sequence]:
        """Some of the requests that are due within so many seconds of the first, of its tenant and priority, itself included."""
        return self._ready.alike(first, seconds)

    def refresh(self, tenant: str) -> None:
        """The tenant's tag changed."""
        self._ready.refresh(tenant)
        self._parked.refresh(tenant)

    def first(self, now: float | None, machine_idle: bool, shared: Callable[[Sequence], int]) -> Sequence | None:
        """Who is to be admitted next, or nobody else. Admits sessions for which there is room, and makes room, on the way.

        `machine_idle` says that nothing runs; `shared`(sequence) how many of its first tokens others have computed.
        """
        self._park_the_excess(now)
        while True:
            ready, parked = self._ready.first(), self._parked.first()
            if parked is None or self._table is None:
                self.wake = None
                return ready
            session, forced = self._table.of(parked), self._is_overdue(parked, ready, now)
            idle = machine_idle and ready is None
            if self._is_blocked((session, self._table.version, forced, idle), now):
                return None if forced else ready
            if not session.turns:
                session.tokens, session.shared = max(session.tokens, parked.length), shared(parked)
            room = self._room(session, now, forced, idle)
            if room is None:
                self._blocked = (session, self._table.version, forced, idle)
                return None if forced else ready
            for other in room:
                self._park(other)
                if forced:
                    self._losses.lose(now, other.recompute)
            self._admit(session)

    def _park_the_excess(self, now: float | None) -> None:
        """Sessions grow after they were admitted. Where they do not fit together any more, those that will be away longest give
        up their places, else each loses a part of what it returns to."""
        table = self._table
        if table is None or table.admitted_tokens <= table.capacity or self._fitted == table.version:
            return
        away = [session for session in table.admitted.values() if not session.running]
        for session in sorted(away, key=lambda session: (bool(session.requests), -session.remaining(now or 0.0))):
            if table.admitted_tokens <= table.capacity or len(table.admitted) == 1:
                break
            self._park(session)
        self._fitted = table.version

    def _is_blocked(self, found: tuple[Session, int, bool, bool], now: float | None) -> bool:
        """Whether nothing has changed since a session was found not to fit: saves the search each step."""
        return self._blocked == found and (self.wake is None or (now or 0.0) < self.wake)

    def _is_overdue(self, parked: Sequence, ready: Sequence | None, now: float | None) -> bool:
        """Admitted sessions' turns go before a parked one's up to `hold_seconds`, or `patience_seconds` where to make room would
        lose too much."""
        if ready is None or ready.due <= parked.due + self._rules.hold_seconds:
            return False
        return self._losses.allows(now) or ready.due > parked.due + self._rules.patience_seconds

    def _room(self, session: Session, now: float | None, forced: bool, idle: bool) -> list[Session] | None:
        """The sessions to park so that this one fits, those first that will be away longest; None when that is not to be."""
        table, chosen, self.wake = self._table, [], None
        assert table is not None
        missing = table.admitted_tokens + session.footprint - table.capacity
        if missing <= 0:
            return chosen
        away = [other for other in table.admitted.values() if may_take(session, other, now, forced, idle)]
        for other in sorted(
            away, key=lambda other: (-other.running, not other.requests, other.remaining(now or 0.0)), reverse=True
        ):
            chosen.append(other)
            missing -= other.footprint
            if missing <= 0:
                return chosen
        if len(chosen) == len(table.admitted):
            return chosen
        later = [other.given_up_at(idle) for other in table.admitted.values() if not other.requests]
        self.wake = min((time for time in later if now is not None and time > now), default=None)
        return None

    def _admit(self, session: Session) -> None:
        assert self._table is not None
        self._table.admit(session)
        self._move(session, self._parked, self._ready)

    def _park(self, session: Session) -> None:
        assert self._table is not None
        self._table.park(session)
        self._gave_up(session.name)
        self._move(session, self._ready, self._parked)

    def _move(self, session: Session, source: WaitingQueue, target: WaitingQueue) -> None:
        for sequence in session.requests.values():
            if sequence.status is Status.WAITING:
                sequence.parked = target is self._parked
                source.dropped(sequence)
                target.push(sequence)

    def _queue(self, sequence: Sequence) -> WaitingQueue:
        return self._parked if sequence.parked else self._ready


def may_take(session: Session, other: Session, now: float | None, forced: bool, idle: bool) -> bool:
    """Whether a session that waits may have the place of an admitted one: of one of worse priority, and of one that is idle for
    longer than the place is worth; where nothing else runs, of one that stays away for much longer than it takes to compute its
    context; if `forced`, of any that does not run."""
    if other.running or other.requests:
        return other.priority > session.priority or (forced and not other.running)
    if forced or other.priority > session.priority or now is None:
        return forced or idle or other.priority > session.priority
    return now >= other.given_up_at(idle) or (idle and other.remaining(now) > PATIENCE * other.recompute)
