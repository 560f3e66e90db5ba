"""Messages between the entrypoint and the engine: msgpack over ZeroMQ (PUSH/PULL, one socket each way)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "abort", "error"]
TurnEnd = Literal["tool_call", "end_of_turn"]


class SamplingParameters(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one sequence is sampled. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 and `min_p` 0 are off.

    `logprobs` is how many alternatives are wanted beside the chosen token's own (None: none at all).
    Stop strings are the entrypoint's business and do not appear here.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = {}
    stop_tokens: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None


def packed(tokens: Sequence[int]) -> bytes:
    """Token ids as messages carry them: int32, little-endian. A list of numbers takes the receiver ten times as long."""
    return array("i", tokens).tobytes()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """A new sequence of `packed` prompt tokens. Lower `priority` is earlier. `salt` separates tenants in the prefix cache.
    `deadline_seconds` counts from the arrival to the first token; it and the other fields without a word here are as in
    `scheduling.request.Request`."""

    request_id: str
    tokens: bytes
    sampling: SamplingParameters
    priority: int = 0
    salt: str = ""
    session_id: str = ""
    tenant: str = ""
    deadline_seconds: float | None = None
    inter_token_seconds: float | None = None
    retention_seconds: float | None = None

    @property
    def prompt(self) -> array[int]:
        """Its tokens."""
        found = array("i")
        found.frombytes(self.tokens)
        return found

    @property
    def prompt_tokens(self) -> int:
        """How many."""
        return len(self.tokens) // array("i").itemsize


class EndTurn(msgspec.Struct, frozen=True, tag=True):
    """A hint that comes after a session's turn: why it ended."""

    session_id: str
    end: TurnEnd


class CloseSession(msgspec.Struct, frozen=True, tag=True):
    """A hint: the session has no further turn."""

    session_id: str


class Abort(msgspec.Struct, frozen=True, tag=True):
    """Forget a sequence (client gone, stop string found); its blocks are freed."""

    request_id: str


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """Finish what is running if `drain`, else abort it; then exit."""

    drain: bool = True


EngineCommand = Submit | EndTurn | CloseSession | Abort | Shutdown


class TokenLogprob(msgspec.Struct, frozen=True):
    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenEvent(msgspec.Struct, frozen=True):
    """One sequence's news of one step. The last event of a sequence has `finish_reason`.

    `cached_tokens` is how many prompt tokens came from the prefix cache; the durations (seconds) come with the last event.
    """

    request_id: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    error: str = ""
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


class Accepted(msgspec.Struct, frozen=True, tag=True):
    """A Submit is in the queue: from now on its end is told by TokenEvents."""

    request_id: str


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """A Submit that was never accepted: `code` is "queue_full", "prompt_too_long", "invalid_request" or "draining"."""

    request_id: str
    code: str
    message: str


class EngineStats(msgspec.Struct, frozen=True):
    """Gauges and running totals of the engine since its start, those of its scheduler as in `scheduling.request.SchedulerStats`.

    `busy_seconds`: for how long a step was in flight. `host_seconds`: what the engine's loop did itself, scheduling above all,
    and waited for nothing. `roofline_seconds`: the least that all that work takes on the plan's machine; 0 where that is not
    known.
    """

    running: int = 0
    waiting: int = 0
    parked: int = 0
    kv_usage: float = 0.0
    host_usage: float = 0.0
    preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    host_hits: int = 0
    offloaded_tokens: int = 0
    reloaded_tokens: int = 0
    disk_usage: float = 0.0
    stored_tokens: int = 0
    fetched_tokens: int = 0
    refused_tokens: int = 0
    restored_tokens: int = 0
    recomputed_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    last_step_rows: int = 0
    busy_seconds: float = 0.0
    host_seconds: float = 0.0
    roofline_seconds: float = 0.0


class StepNews(msgspec.Struct, frozen=True, tag=True):
    events: tuple[TokenEvent, ...]
    stats: EngineStats


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The engine serves. `startup` maps a phase to its seconds, in order."""

    startup: dict[str, float]


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine cannot go on. `exit_code` as in plans/errors.py; `details` is `TokenspeedError.to_dict()` if it was one."""

    message: str
    exit_code: int
    details: dict[str, str] = {}


class Drained(msgspec.Struct, frozen=True, tag=True):
    """Answer to Shutdown: nothing is running any more."""


EngineNews = StepNews | Accepted | Rejected | Ready | EngineFailed | Drained
