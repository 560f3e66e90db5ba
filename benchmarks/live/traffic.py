"""The traffic of all arms: what the command that plays it is told, and the same as the simulator's trace."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.runtime.traffic.reading import read_trace
from tokenspeed.runtime.traffic.session import Trace
from tokenspeed.runtime.traffic.shaping import Shape, shaped


@dataclass(frozen=True)
class Traffic:
    """Fields are options of `tokenspeed-bench replay`. `seconds` is the limit of one run, `max_context` tokens that of a turn."""

    trace: str
    agents: int
    sessions: int
    max_turns: int | None
    context_scale: float
    most_gap: float
    time_scale: float
    seconds: float
    max_context: int

    def words(self) -> list[str]:
        """For the whole run."""
        return [*self._words(self.max_turns, self.sessions), "--time-limit", str(self.seconds)]

    def warm_up_words(self, turns: int) -> list[str]:
        """Other contents: everything runs once, nothing of the traffic is cached."""
        return [*self._words(turns, self.agents), "--seed", "1", "--time-limit", str(self.seconds)]

    def shaped(self) -> Trace:
        """As the command makes it. Raises UsageError when no turn fits."""
        shape = Shape(sessions=self.sessions, max_turns=self.max_turns, context_scale=self.context_scale, most_gap=self.most_gap)
        return shaped(read_trace(self.trace), shape, self.max_context)

    def _words(self, max_turns: int | None, sessions: int) -> list[str]:
        found = ["--trace", self.trace, "--agents", self.agents, "--sessions", sessions, "--context-scale", self.context_scale]
        found += ["--most-gap", self.most_gap, "--time-scale", self.time_scale, "--max-context", self.max_context]
        if max_turns is not None:
            found += ["--max-turns", max_turns]
        return [str(word) for word in found]


def left_out(trace: Trace) -> str:
    """In words."""
    left = trace.left_out
    return f"left out {left.turns} turns, {left.sessions} whole sessions" if left.turns else "nothing left out"
