"""The traffic of all arms: what the command that plays it is told, and the same as the simulator's trace."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenspeed.runtime.traffic.reading import read_trace
from tokenspeed.runtime.traffic.session import Trace
from tokenspeed.runtime.traffic.shaping import Shape, shaped


@dataclass(frozen=True)
class Traffic:
    """Fields are options of `tokenspeed-bench replay`. `seconds` is the limit of one run, `max_context` tokens that of a turn.
    A server is warmed up by as many sessions as `agents`, of `warm_up_turns` turns (0: not at all)."""

    trace: str
    agents: int
    sessions: int | None
    max_turns: int | None
    context_scale: float
    most_gap: float | None
    time_scale: float
    seconds: float
    max_context: int
    warm_up_turns: int

    def words(self) -> list[str]:
        """For the whole run."""
        return self._words(self._shape)

    def warm_up_words(self) -> list[str]:
        return self._words(self._warm_up)

    def shaped(self) -> Trace:
        """As the command makes it. Raises UsageError when no turn fits."""
        return shaped(read_trace(self.trace), self._shape, self.max_context)

    def warm_up(self) -> Trace | None:
        """The same of what comes first."""
        return shaped(read_trace(self.trace), self._warm_up, self.max_context) if self.warm_up_turns else None

    @property
    def _shape(self) -> Shape:
        return Shape(sessions=self.sessions, max_turns=self.max_turns, context_scale=self.context_scale, most_gap=self.most_gap)

    @property
    def _warm_up(self) -> Shape:
        """Other contents: everything runs once, nothing of the traffic is cached."""
        return replace(self._shape, sessions=self.agents, max_turns=self.warm_up_turns, seed=1)

    def _words(self, shape: Shape) -> list[str]:
        given = {"trace": self.trace, "agents": self.agents, "time-scale": self.time_scale, "max-context": self.max_context}
        given |= {"time-limit": self.seconds, "sessions": shape.sessions, "max-turns": shape.max_turns, "seed": shape.seed}
        given |= {"context-scale": shape.context_scale, "most-gap": shape.most_gap}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def left_out(trace: Trace) -> str:
    """In words."""
    left = trace.left_out
    return f"left out {left.turns} turns, {left.sessions} whole sessions" if left.turns else "nothing left out"
