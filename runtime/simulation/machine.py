"""The plan's machine in virtual time: stages that a step goes through one after the other, each with one step at a time."""

from __future__ import annotations

from ..scheduling.step import Step
from .step_times import StepTimes


class VirtualMachine:
    """Runs steps in the order of their launch. `busy_seconds` and `roofline_seconds` are means of the stages;
    what only copies does not count."""

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._free: list[float] = []
        self.busy_seconds = self.roofline_seconds = 0.0

    def launch(self, step: Step, at: float) -> float:
        """Queue a step at time `at`; when it ends."""
        time = self._times(step)
        free = self._free or [0.0] * len(time.stages)
        for stage, seconds in enumerate(time.stages):
            at = free[stage] = max(at, free[stage]) + seconds
        self._free = free
        self.busy_seconds += sum(time.stages) / len(time.stages) if step.rows else 0.0
        self.roofline_seconds += time.roofline
        return at
