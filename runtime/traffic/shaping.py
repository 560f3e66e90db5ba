"""What a benchmark makes of a trace before it plays it, in one order: how many sessions, how long, how far apart."""

from __future__ import annotations

from dataclasses import dataclass

from ...plans.errors import UsageError
from . import scaling
from .session import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Fields are options of the commands that play traces; None leaves the trace as it is.

    `sessions` play, of `max_turns` turns at most, with lengths times `context_scale`; `seed` gives them other tokens; nobody
    waits longer than `most_gap` seconds; `session_rate` sessions/s begin.
    """

    sessions: int | None = None
    max_turns: int | None = None
    context_scale: float = 1.0
    seed: int | None = None
    most_gap: float | None = None
    session_rate: float | None = None


def shaped(trace: Trace, shape: Shape, max_context: int | None) -> Trace:
    """The trace to play, cut at turns of more than `max_context` tokens. Raises UsageError when nothing is left."""
    if shape.sessions is not None:
        trace = scaling.with_sessions(trace, shape.sessions)
    if shape.max_turns is not None:
        trace = scaling.cut_turns(trace, shape.max_turns)
    trace = scaling.scale_context(trace, shape.context_scale)
    if max_context is not None:
        trace = scaling.cut_at_context(trace, max_context)
    if not trace.sessions:
        raise UsageError(
            "No turn of the trace fits the model's context.",
            where=trace.source,
            expected=f"prompts and outputs of at most {max_context} tokens",
            fix="make it smaller with --context-scale",
        )
    if shape.seed is not None:
        trace = scaling.with_seed(trace, shape.seed)
    if shape.most_gap is not None:
        trace = scaling.cap_gaps(trace, shape.most_gap)
    if shape.session_rate is not None:
        trace = scaling.spread_arrivals(trace, shape.session_rate)
    return trace
