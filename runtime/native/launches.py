"""Runs of native calls inside an expanded program: collected while the program is expanded, one launch each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...plans.errors import PlanError
from ...plans.program import NATIVE, Attribute
from .calls import CallList
from .records import NativeArray
from .runtime import NativeRuntime
from .team import ThreadTeam

Launch = Callable[[], None]


def run_calls(calls: CallList, team: ThreadTeam) -> None:
    """What a launch does. A place of its own, so that a benchmark can time the calls instead."""
    calls.run(team)


class NativeLaunches:
    """Takes native calls in program order; `cut` ends a run of them and gives back its launch, None if there were none."""

    def __init__(self, runtime: NativeRuntime | None) -> None:
        self._runtime = runtime
        self._open: CallList | None = None
        self._lists: list[CallList] = []

    def add(
        self,
        function: str,
        inputs: Sequence[NativeArray],
        outputs: Sequence[NativeArray],
        attributes: Mapping[str, Attribute],
        label: str,
    ) -> None:
        if self._runtime is None:
            raise PlanError(
                "The plan calls native kernels but carries none.", where=label, got=function, fix="compile the plan again"
            )
        if self._open is None:
            self._open = CallList(self._runtime.library)
        self._open.add(function.removeprefix(NATIVE), inputs, outputs, attributes, label)

    def cut(self) -> Launch | None:
        calls, self._open = self._open, None
        if calls is None or self._runtime is None:
            return None
        team = self._runtime.team
        self._lists.append(self._runtime.sealed(calls))
        return lambda: run_calls(calls, team)

    def resize(self, rows: int, logit_rows: int) -> None:
        """Fit all runs so far to a step of this size."""
        for calls in self._lists:
            calls.resize(rows, logit_rows)
