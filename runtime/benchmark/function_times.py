"""Time by function of the allow-list, by timing every launch. It costs about a microsecond a launch, so it is a pass apart."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from ...plans.program import NATIVE
from .. import expand
from ..functions.base import Launch, Operands
from ..functions.registry import Function
from ..native import launches
from ..native.calls import CallList
from ..native.team import ThreadTeam


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

    def add(self, name: str, seconds: float) -> None:
        self._seconds[name] += seconds
        self._launches[name] += 1

    def timed(self, name: str, launch: Launch) -> Launch:
        add, now = self.add, time.perf_counter

        def run() -> None:
            start = now()
            launch()
            add(name, now() - start)

        return run


@contextmanager
def timed_functions() -> Iterator[FunctionClock]:
    """Programs that are expanded inside have every launch timed, native kernels call by call. Not for a process that serves at
    the same time: it stands in for what expansion looks functions up with, and for what runs native calls."""
    clock, lookup, run_calls = FunctionClock(), expand.lookup, launches.run_calls

    def timing_lookup(name: str) -> Function:
        function = lookup(name)

        def bind(operands: Operands) -> Launch:
            return clock.timed(name, function(operands))

        return bind

    def timing_run(calls: CallList, team: ThreadTeam) -> None:
        for name, seconds in calls.run_timed(team):
            clock.add(NATIVE + name, seconds)

    expand.lookup, launches.run_calls = timing_lookup, timing_run
    try:
        yield clock
    finally:
        expand.lookup, launches.run_calls = lookup, run_calls
