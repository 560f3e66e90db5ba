"""Collectives that run beside what follows: begun where the program calls them, waited for before their arrays are touched.

Which launches may run beside one follows from addresses, once, when a program is expanded, repeats unrolled: one may reach into
the next round. Every rank expands the same program in the same way, so all begin the same collectives in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .functions.context import Launch

Span = tuple[int, int]
"""Addresses, from and to."""


@dataclass(frozen=True)
class Meeting:
    """A collective as a launch, and as two that others may come between. `shares`: it uses memory that others use too."""

    run: Launch
    begin: Launch
    finish: Launch
    shares: bool = False

    def __call__(self) -> None:
        self.run()

    def with_launches(self, change: Callable[[Launch], Launch]) -> Meeting:
        """The same with each of its launches changed."""
        return Meeting(change(self.run), change(self.begin), change(self.finish), self.shares)


@dataclass(frozen=True)
class _Open:
    meeting: Meeting
    reads: tuple[Span, ...]
    writes: tuple[Span, ...]


class Overlap:
    """Collectives that are on their way as launches are listed."""

    def __init__(self) -> None:
        self._open: list[_Open] = []

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def begin(self, meeting: Meeting, reads: Sequence[Span], writes: Sequence[Span]) -> list[Launch]:
        """What begins a collective: before it, what waits for others that it cannot run beside."""
        waits = self.before(reads, writes)
        if meeting.shares:
            waits += self._finished(lambda item: item.meeting.shares)
        self._open.append(_Open(meeting, tuple(reads), tuple(writes)))
        return [*waits, meeting.begin]

    def before(self, reads: Sequence[Span], writes: Sequence[Span]) -> list[Launch]:
        """What waits for those collectives that a launch which reads and writes these arrays must come after."""
        return self._finished(lambda item: _meet((*reads, *writes), item.writes) or _meet(writes, item.reads))

    def finish(self) -> list[Launch]:
        """What waits for all of them."""
        return self._finished(lambda _item: True)

    def _finished(self, chosen: Callable[[_Open], bool]) -> list[Launch]:
        ending = [item for item in self._open if chosen(item)]
        self._open = [item for item in self._open if item not in ending]
        return [item.meeting.finish for item in ending]


def joined(launches: Sequence[Launch], meetings: Sequence[Meeting]) -> list[Launch]:
    """The same launches, but collectives that nothing runs beside in one."""
    begun = {meeting.begin: meeting for meeting in meetings}
    found: list[Launch] = []
    at = 0
    while at < len(launches):
        meeting = begun.get(launches[at])
        alone = meeting is not None and at + 1 < len(launches) and launches[at + 1] is meeting.finish
        found.append(meeting.run if meeting is not None and alone else launches[at])
        at += 2 if alone else 1
    return found


def _meet(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(start < other_stop and other_start < stop for start, stop in some for other_start, other_stop in others)
