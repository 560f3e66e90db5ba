"""Make a trace smaller, faster, longer or more crowded. What has to be left out is counted in `left_out`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .contents import named, renamed, reseeded
from .session import Prompt, Session, Trace, Turn


def scale_context(trace: Trace, factor: float) -> Trace:
    """Prompts and outputs `factor` times as long, at least one token each; equal beginnings stay equal. Texts are dropped."""
    return trace if factor == 1 else _each_turn(trace, lambda turn: _scaled(turn, factor))


def scale_time(trace: Trace, factor: float) -> Trace:
    """All that clients wait, and all arrivals, `factor` times as long: 0.1 is ten times as fast."""
    return _each_turn(
        trace,
        lambda turn: replace(turn, gap_seconds=turn.gap_seconds * factor, arrival_seconds=turn.arrival_seconds * factor),
    )


def cap_gaps(trace: Trace, seconds: float) -> Trace:
    """No client waits longer than this between turns: a session left for the night does not hold up a benchmark."""
    return _each_turn(trace, lambda turn: replace(turn, gap_seconds=min(turn.gap_seconds, seconds)))


def cut_at_context(trace: Trace, tokens: int) -> Trace:
    """A session ends before its first turn whose prompt and output are more than `tokens`; without a turn it is left out."""
    return _cut(
        trace, lambda turns: next((n for n, turn in enumerate(turns) if turn.prompt_tokens + turn.output_tokens > tokens), None)
    )


def cut_turns(trace: Trace, count: int) -> Trace:
    """At most the first `count` turns of each session."""
    return _cut(trace, lambda turns: count)


def with_sessions(trace: Trace, count: int) -> Trace:
    """The first `count` sessions; where there are fewer, all of them again under other names, with contents of their own but for
    those known to all sessions, behind the end of the trace."""
    given = trace.sessions
    if not given:
        return trace
    left = trace.left_out
    for session in given[count:]:
        left = left.plus(1, session.turns)
    length = max(session.turns[-1].arrival_seconds for session in given)
    sessions = [_again(given[n % len(given)], n // len(given), length) for n in range(count)]
    return replace(trace, sessions=tuple(sessions), left_out=left)


def with_seed(trace: Trace, seed: int) -> Trace:
    """The same traffic with other tokens, so that no cache knows them of an earlier run. Texts stay as they are."""

    def changed(turn: Turn) -> Turn:
        return replace(turn, prompt=Prompt(reseeded(turn.prompt.contents, seed), turn.prompt.ends, turn.prompt.text))

    return _each_turn(trace, changed)


def spread_arrivals(trace: Trace, sessions_per_second: float, seed: int = 0) -> Trace:
    """Sessions begin at random times (Poisson) in their order: for traces in which all begin at once."""
    random, start, sessions = np.random.default_rng(seed), 0.0, []
    for session in trace.sessions:
        sessions.append(_moved(session, start - session.arrival_seconds))
        start += float(random.exponential(1 / sessions_per_second))
    return replace(trace, sessions=tuple(sessions))


def _each_turn(trace: Trace, change: Callable[[Turn], Turn]) -> Trace:
    return replace(trace, sessions=tuple(replace(item, turns=tuple(map(change, item.turns))) for item in trace.sessions))


def _scaled(turn: Turn, factor: float) -> Turn:
    ends = np.rint(turn.prompt.ends * factor).astype(np.int64)
    kept = np.diff(ends, prepend=0) > 0
    if not kept.any():
        kept[0], ends[0] = True, 1
    prompt = Prompt(turn.prompt.contents[kept], ends[kept])
    return replace(turn, prompt=prompt, output_tokens=max(1, round(turn.output_tokens * factor)))


def _cut(trace: Trace, place: Callable[[tuple[Turn, ...]], int | None]) -> Trace:
    left, sessions = trace.left_out, []
    for session in trace.sessions:
        end = place(session.turns)
        kept, dropped = session.turns[:end], session.turns[len(session.turns) if end is None else end :]
        if dropped:
            left = left.plus(0 if kept else 1, dropped)
        if kept:
            sessions.append(replace(session, turns=kept))
    return replace(trace, sessions=tuple(sessions), left_out=left)


def _again(session: Session, time: int, length: float) -> Session:
    if not time:
        return session
    seed, moved = named("again", session.session_id, time), _moved(session, time * length)
    turns = [
        replace(turn, prompt=Prompt(renamed(turn.prompt.contents, seed), turn.prompt.ends, turn.prompt.text))
        for turn in moved.turns
    ]
    return replace(moved, session_id=f"{session.session_id}#{time + 1}", turns=tuple(turns))


def _moved(session: Session, seconds: float) -> Session:
    turns = tuple(replace(turn, arrival_seconds=turn.arrival_seconds + seconds) for turn in session.turns)
    return replace(session, turns=turns)
