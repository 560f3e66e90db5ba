"""Sessions of a coding agent drawn from distributions that were measured over 710 real ones; the same seed, the same sessions.

Measured: input tokens p50 105k, p90 236k; output p50 216, p90 899; new tokens a turn p50 704, p90 4,032; turns p50 45; before a
tool's result p50 9 s and 88 % within 60 s, before a person's message p50 127 s; 96.4 % of input tokens repeat the session's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scheduling.request import TurnEnd
from .contents import named
from .session import Prompt, Session, Trace, Turn


@dataclass(frozen=True, slots=True)
class LogNormal:
    """`median` and the standard deviation of the logarithm; never above `most`."""

    median: float
    spread: float
    most: float

    def draw(self, random: np.random.Generator) -> float:
        return min(self.median * float(np.exp(self.spread * random.standard_normal())), self.most)


@dataclass(frozen=True, slots=True)
class AgentTraffic:
    """Tokens, seconds and shares of turns or sessions.

    Every session begins with the same tools and system prompt. Of the sessions `resumed_share` go on with an old conversation.
    A turn adds `growth` (what is kept of the answer, and a tool's result or a person's message). A conversation is rewritten
    (shortened, or edited near its beginning) in `rewritten_share` of its turns, and when it grows over its limit.
    """

    tools_tokens: int = 12_500
    system_tokens: int = 2_700
    fresh: LogNormal = LogNormal(12_000, 0.9, 100_000)
    resumed: LogNormal = LogNormal(170_000, 0.5, 600_000)
    resumed_share: float = 0.25
    growth: LogNormal = LogNormal(680, 1.29, 40_000)
    limit: LogNormal = LogNormal(190_000, 0.25, 500_000)
    output: LogNormal = LogNormal(216, 1.11, 16_000)
    turns: LogNormal = LogNormal(45, 0.8, 400)
    tool_gap: LogNormal = LogNormal(9.0, 1.61, 3_600.0)
    person_gap: LogNormal = LogNormal(127.0, 2.0, 86_400.0)
    person_share: float = 0.065
    rewritten_share: float = 0.008
    shortened_to: float = 0.5
    session_gap: float = 60.0
    answer_seconds: float = 2.0
    seconds_per_token: float = 0.02


def draw_trace(sessions: int, seed: int = 0, traffic: AgentTraffic | None = None) -> Trace:
    """Sessions that begin `session_gap` seconds apart on average. Session n is the same whatever their number."""
    traffic, start, drawn = traffic or AgentTraffic(), 0.0, []
    for number in range(sessions):
        random = np.random.default_rng([seed, number])
        drawn.append(_Conversation(traffic, random, f"agent-{seed}-{number}", start).session())
        start += float(random.exponential(traffic.session_gap))
    return Trace(f"synthetic:sessions={sessions},seed={seed}", tuple(drawn))


class _Conversation:
    """A session while it is drawn: the spans of its history."""

    def __init__(self, traffic: AgentTraffic, random: np.random.Generator, name: str, start: float) -> None:
        self._traffic, self._random, self._name, self._clock = traffic, random, name, start
        self._spans = 0
        self._limit = max(traffic.limit.draw(random), 2.0 * (traffic.tools_tokens + traffic.system_tokens))
        self._contents = [named("tools", traffic.tools_tokens, shared=True), named("system", traffic.system_tokens, shared=True)]
        self._lengths = [traffic.tools_tokens, traffic.system_tokens]

    def session(self) -> Session:
        traffic, random = self._traffic, self._random
        resumed = random.random() < traffic.resumed_share
        self._add((traffic.resumed if resumed else traffic.fresh).draw(random))
        self._limit = max(self._limit, 1.3 * self._tokens if resumed else 0.0)
        turns: list[Turn] = []
        for _ in range(max(1, round(traffic.turns.draw(random)))):
            gap = self._next(turns[-1].end) if turns else 0.0
            end: TurnEnd = "end_of_turn" if random.random() < traffic.person_share else "tool_call"
            output = max(1, round(traffic.output.draw(random)))
            turns.append(Turn(self._prompt(), output, gap, self._clock, end))
            self._clock += traffic.answer_seconds + traffic.seconds_per_token * output
        return Session(self._name, tuple(turns))

    def _next(self, end: TurnEnd | None) -> float:
        """The history of the next turn; how long it lets wait."""
        traffic, random = self._traffic, self._random
        gap = (traffic.person_gap if end == "end_of_turn" else traffic.tool_gap).draw(random)
        self._clock += gap
        if self._tokens > self._limit:
            self._rewrite(traffic.shortened_to)
        elif random.random() < traffic.rewritten_share:
            self._rewrite(1.0)
        self._add(traffic.growth.draw(random))
        return gap

    @property
    def _tokens(self) -> int:
        return sum(self._lengths)

    def _rewrite(self, kept: float) -> None:
        """All behind the system prompt becomes other tokens, `kept` times as many."""
        tokens = sum(self._lengths[2:]) * kept
        del self._lengths[2:], self._contents[2:]
        self._add(tokens)

    def _add(self, tokens: float) -> None:
        self._contents.append(named(self._name, self._spans))
        self._lengths.append(max(1, round(tokens)))
        self._spans += 1

    def _prompt(self) -> Prompt:
        ends: NDArray[np.int64] = np.cumsum(self._lengths, dtype=np.int64)
        return Prompt(np.array(self._contents, np.uint64), ends)
