"""What goes into the scheduler and what comes out: limits, requests, outcomes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import msgspec

from ...plans.errors import PlanError
from ...plans.schema import Schedule
from .step import IntArray

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Limits fixed by the plan, in rows or requests; `prefill_chunk` is rows of one prompt in one step, `max_context` tokens.

    Raises PlanError when a limit is no positive int32 or a step could not hold its decode rows.
    """

    max_rows: int
    max_decode_rows: int
    max_sequences: int
    prefill_chunk: int
    max_waiting: int
    max_context: int

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 1 <= getattr(self, field.name) < 2**31:
                raise _unusable(field.name, "from 1 to 2**31 - 1", getattr(self, field.name))
        if self.max_decode_rows > self.max_rows:
            raise _unusable("max_decode_rows", f"at most max_rows ({self.max_rows})", self.max_decode_rows)

    @classmethod
    def from_plan(cls, schedule: Schedule, max_context: int) -> SchedulerLimits:
        names = (field.name for field in fields(cls) if field.name != "max_context")
        return cls(**{name: getattr(schedule, name) for name in names}, max_context=max_context)


def _unusable(name: str, expected: str, got: int) -> PlanError:
    return PlanError(
        "a schedule limit is not usable", where=f"schedule.{name}", expected=expected, got=str(got), fix="compile the plan again"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """A sequence to generate. `tokens` is the prompt; lower `priority` is earlier; `salt` separates tenants' prefixes.

    A stop token ends the generation once `min_tokens` output tokens came before it; an earlier one is an ordinary token.

    `session_id` names the conversation that this is a turn of ("": a session of its own), `tenant` whose share of the machine
    it draws on. `deadline` is the time (of `Scheduler.tick`) by which the first token is due, `inter_token_seconds` how far apart
    the others may come. `retention_seconds` is a hint how long its prefix will be wanted after its end.
    """

    request_id: str
    tokens: IntArray
    max_tokens: int
    priority: int = 0
    salt: str = ""
    stop_tokens: frozenset[int] = frozenset()
    min_tokens: int = 0
    session_id: str = ""
    tenant: str = ""
    deadline: float | None = None
    inter_token_seconds: float | None = None
    retention_seconds: float | None = None


TurnEnd = Literal["tool_call", "end_of_turn"]
"""Why a session's turn ended: its client runs a tool and comes back soon, or a person is to answer."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """One request's news of one step; the last one has `finish_reason`.

    `token` is what was sampled (also when it is the stop token, which `stop_token` then names); None after an abort or error.
    `cached_tokens` is how many prompt tokens came from the prefix cache when the request first had rows.
    """

    request_id: str
    token: int | None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    cached_tokens: int = 0


class SchedulerStats(msgspec.Struct, frozen=True):
    """Gauges and exact running totals.

    Of those that wait, `parked` do because their session is not admitted. `kv_usage` is the share of the pool that sequences use,
    `host_usage` that of the host tier that holds copies. Queries and hits, recomputed and discarded count tokens.

    `prefix_queries` and `prefix_hits` count the first time that a request has rows, and `host_hits` are those of the hits that
    were brought back from the host for it. `offloaded_tokens` and `reloaded_tokens` were copied to the host and back.
    `disk_usage` is the share of the tier on disk that holds units; `stored_tokens` were written there, `fetched_tokens` read, and
    `refused_tokens` could not be read or were not what they had been; `restored_tokens` were there when the engine started.
    `recomputed_tokens` are tokens whose KV was computed again because of a preemption; `discarded_tokens` were sampled for a
    request that had already ended.
    """

    running: int
    waiting: int
    parked: int
    kv_usage: float
    host_usage: float
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    host_hits: int
    recomputed_tokens: int
    discarded_tokens: int
    evictions: int
    prompt_tokens: int
    generation_tokens: int
    steps: int
    last_step_rows: int
    offloaded_tokens: int
    reloaded_tokens: int
    disk_usage: float = 0.0
    stored_tokens: int = 0
    fetched_tokens: int = 0
    refused_tokens: int = 0
    restored_tokens: int = 0
