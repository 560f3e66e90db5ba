"""Time by function of the allow-list, by timing every launch. It costs about a microsecond a launch, so it is a pass apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from .. import expand
from ..functions.base import Launch, Operands
from ..functions.registry import Function


class FunctionTime(msgspec.Struct, frozen=True):
    """Of one step."""

    function: str
    launches: float
    seconds: float


class FunctionClock:
    """Seconds and launches by function since `reset`."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._launches: defaultdict[str, int] = defaultdict(int)

    def reset(self) -> None:
        self._seconds.clear()
        self._launches.clear()

    def per_step(self, steps: int) -> list[FunctionTime]:
        """The most expensive first."""
        names = sorted(self._seconds, key=lambda name: -self._seconds[name])
        return [FunctionTime(name, self._launches[name] / steps, self._seconds[name] / steps) for name in names]

    def timed(self, name: str, launch: Launch) -> Launch:
        seconds, launches, now = self._seconds, self._launches, time.perf_counter

        def run() -> None:
            start = now()
            launch()
            seconds[name] += now() - start
            launches[name] += 1

        return run


@contextmanager
def timed_functions() -> Iterator[FunctionClock]:
    """Programs that are expanded inside have every launch timed. Not for a process that serves at the same time: it stands in
    for the lookup that expansion does."""
    clock, lookup = FunctionClock(), expand.lookup

    def timing_lookup(name: str) -> Function:
        function = lookup(name)

        def bind(operands: Operands) -> Launch:
            return clock.timed(name, function(operands))

        return bind

    expand.lookup = timing_lookup
    try:
        yield clock
    finally:
        expand.lookup = lookup
