"""The one form of traffic: a trace is sessions, a session is turns, a turn is a prompt and a count of output tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ..scheduling.request import TurnEnd


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """Tokens without their values: span i is the first tokens of the endless stream `contents[i]` (uint64) and ends before
    position `ends[i]` (int64, ascending). Prompts that begin with the same spans begin with the same tokens.

    `text` is what a trace with texts had; the spans then are pieces of it, and only its server knows the true count.
    """

    contents: NDArray[np.uint64]
    ends: NDArray[np.int64]
    text: str | None = None

    def __post_init__(self) -> None:
        if self.contents.shape != self.ends.shape or not len(self.ends):
            raise ValueError("a prompt has at least one span, each with a content and an end")

    def __len__(self) -> int:
        """Tokens."""
        return int(self.ends[-1])

    def common(self, other: Prompt) -> int:
        """Spans at the beginning that both have in full."""
        count = min(len(self.ends), len(other.ends))
        same = (self.contents[:count] == other.contents[:count]) & (self.ends[:count] == other.ends[:count])
        return count if same.all() else int(same.argmin())

    def common_tokens(self, other: Prompt) -> int:
        """Tokens at the beginning that both have, known from the spans alone."""
        spans = self.common(other)
        tokens = int(self.ends[spans - 1]) if spans else 0
        if spans < min(len(self.ends), len(other.ends)) and self.contents[spans] == other.contents[spans]:
            tokens = int(min(self.ends[spans], other.ends[spans]))
        return tokens


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One request of a session. Its prompt is the whole conversation so far.

    `gap_seconds` is what the client took between the end of the turn before and this request (0 for the first): its tool ran,
    or a person thought. `arrival_seconds` is when the trace had the request, from the beginning of the trace. `end` is why the
    answer ended, None where the trace does not say. An answer has at least one token: none is computed with fewer.
    """

    prompt: Prompt
    output_tokens: int
    gap_seconds: float = 0.0
    arrival_seconds: float = 0.0
    end: TurnEnd | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A conversation: at least one turn, in order, none before the end of the one before it."""

    session_id: str
    turns: tuple[Turn, ...]
    tenant: str = ""
    priority: int = 0

    @property
    def arrival_seconds(self) -> float:
        return self.turns[0].arrival_seconds


@dataclass(frozen=True, slots=True)
class Left:
    """What was left out of a trace because it did not fit, or was not wanted."""

    sessions: int = 0
    turns: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def plus(self, sessions: int, turns: tuple[Turn, ...]) -> Left:
        return Left(
            self.sessions + sessions,
            self.turns + len(turns),
            self.prompt_tokens + sum(len(turn.prompt) for turn in turns),
            self.output_tokens + sum(turn.output_tokens for turn in turns),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """`source` says where it came from, `left_out` what is missing of it."""

    source: str
    sessions: tuple[Session, ...]
    left_out: Left = field(default_factory=Left)

    def with_sessions(self, sessions: tuple[Session, ...], left_out: Left | None = None) -> Trace:
        return replace(self, sessions=sessions, left_out=left_out or self.left_out)

    @property
    def turns(self) -> int:
        return sum(len(session.turns) for session in self.sessions)
