"""When cached units are expected to be used again, from what is known of their sessions. Hints decay, nothing is pinned."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .blocks import Reuse, Unit
from .order import Clock
from .request import TurnEnd

MOST_SESSIONS = 8192
"""Sessions that are remembered, if their chains are not too long together; those without news for longest are forgotten first."""

LONGEST_HINT = 3600.0
"""Seconds that a client's wish to keep a prefix counts for at most."""

_AFTER: dict[TurnEnd | None, Reuse] = {"tool_call": Reuse.TOOL, "end_of_turn": Reuse.USER, None: Reuse.USER}


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whose a sequence's blocks are: its session, or the request itself where it has none (`named` false). `digests` are those of
    its chain, which grows; `hint` is seconds for which its client wants the prefix kept."""

    session: str
    named: bool
    digests: Sequence[bytes]
    hint: float = 0.0


@dataclass(slots=True)
class _Session:
    """`digests` of the chain that its last turn left; how that ended; whether it was closed while a turn ran."""

    digests: Sequence[bytes] = field(default_factory=tuple)
    end: TurnEnd | None = None
    closed: bool = False


class Retention:
    """`by_reuse`: units have an expected reuse, else all are equal. `supersede`: what a session's next turn does not go on with,
    and all that a closed session leaves, goes first; units that several sessions have used never do.

    Of all sessions together `most_digests` are remembered. A turn that goes on with less than half of the one before is taken
    for another conversation, and replaces nothing.
    """

    def __init__(self, clock: Clock, most_digests: int, by_reuse: bool = False, supersede: bool = False) -> None:
        self._clock, self._most_digests, self.by_reuse, self.supersede = clock, most_digests, by_reuse, supersede
        self._digests = 0
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, owner: Owner) -> Iterator[bytes]:
        """A turn starts: digests of units that it replaces, last first."""
        if not owner.named or not (self.by_reuse or self.supersede):
            return
        session = self._sessions.pop(owner.session, None) or _Session()
        self._sessions[owner.session] = session
        self._forget()
        session.end, session.closed = None, False
        if self.supersede:
            before, common = session.digests, _common(session.digests, owner.digests)
            if 2 * common >= len(before):
                for number in range(len(before) - 1, common - 1, -1):
                    yield before[number]

    def used(self, unit: Unit, owner: Owner) -> None:
        """A sequence takes a unit, or has computed it."""
        if not unit.session:
            unit.session = owner.session
        elif unit.session != owner.session:
            unit.shared = True

    def expect(self, unit: Unit, owner: Owner, ended: bool) -> None:
        """A sequence gives a unit back because it ended or was preempted: set when the unit is expected to be used again."""
        session = self._sessions.get(owner.session) if owner.named else None
        unit.since, unit.hint = self._clock.now, max(unit.hint, owner.hint) if unit.shared else owner.hint
        if self.supersede and ended and session is not None and session.closed and not unit.shared:
            unit.reuse = Reuse.GONE
        elif not self.by_reuse:
            unit.reuse = Reuse.IDLE
        elif unit.shared:
            unit.reuse = Reuse.SHARED
        elif not ended:
            unit.reuse = Reuse.TOOL  # preempted: it comes back as soon as it can
        elif owner.named:
            unit.reuse = _AFTER[session.end] if session is not None else Reuse.USER
        else:
            unit.reuse = Reuse.HINTED if owner.hint else Reuse.IDLE

    def leave_behind(self, unit: Unit) -> None:
        """No row of its sequence sees a window's unit any more: who goes on with the sequence does not need it, but others that
        start as it did may."""
        unit.since = self._clock.now
        if self.by_reuse:
            unit.reuse = Reuse.SHARED if unit.shared else Reuse.GONE

    def end(self, owner: Owner) -> None:
        """The sequence ends: its chain is what the session's next turn is expected to go on with."""
        session = self._sessions.get(owner.session) if owner.named else None
        if session is not None:
            self._digests += len(owner.digests) - len(session.digests)
            session.digests = owner.digests
            self._forget()

    def _forget(self) -> None:
        while len(self._sessions) > 1 and (self._digests > self._most_digests or len(self._sessions) > MOST_SESSIONS):
            self._digests -= len(self._sessions.popitem(last=False)[1].digests)

    def end_turn(self, name: str, end: TurnEnd) -> Iterator[tuple[bytes, Reuse]]:
        """News of how a session's last turn ended: digests of its units, last first, and what is expected of them."""
        session = self._sessions.get(name)
        if session is not None and self.by_reuse:
            session.end = end
            yield from ((digest, _AFTER[end]) for digest in reversed(session.digests))

    def digests(self, name: str) -> Iterator[bytes]:
        """Of a session's units, last first, where their reuse counts."""
        session = self._sessions.get(name)
        if session is not None and self.by_reuse:
            yield from reversed(session.digests)

    def close(self, name: str) -> Iterator[bytes]:
        """A session has no further turn: digests of its units, last first."""
        session = self._sessions.get(name)
        if session is not None and self.supersede:
            session.closed = True
            yield from reversed(session.digests)


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """How many digests two chains share. A digest covers all before it, so the end of what is common is found by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
