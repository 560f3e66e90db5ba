"""What happened to each turn, simulated or measured: the one record that reports are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

TurnResult = Literal["finished", "refused", "failed"]


@dataclass(slots=True)
class TurnRecord:
    """A turn of a session. Seconds count from the beginning of the run; `token_seconds` are when its tokens were there.

    `cached_tokens` are those of the prompt that came from a cache at first admission. A turn that was refused, or failed, counts
    in no latency.
    """

    session_id: str
    turn: int
    arrival_seconds: float
    prompt_tokens: int
    tenant: str = ""
    priority: int = 0
    cached_tokens: int = 0
    token_seconds: list[float] = field(default_factory=list)
    result: TurnResult = "finished"

    @property
    def output_tokens(self) -> int:
        return len(self.token_seconds)

    @property
    def first_token_seconds(self) -> float:
        """From arrival to the first token; needs a token."""
        return self.token_seconds[0] - self.arrival_seconds

    @property
    def turn_seconds(self) -> float:
        """From arrival to the last token; needs a token."""
        return self.token_seconds[-1] - self.arrival_seconds
