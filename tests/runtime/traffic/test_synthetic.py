"""Sessions that are drawn: their quantiles are those that were measured, their seed makes them."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.traffic.session import Session
from tokenspeed.runtime.traffic.synthetic import draw_trace

MEASURED = {
    "input p50": 105_000,
    "input p90": 236_000,
    "output p50": 216,
    "output p90": 899,
    "new p50": 704,
    "new p90": 4_032,
    "turns p50": 45,
    "tool gap p50": 9.0,
    "person gap p50": 127.0,
}


def quantile(values: list[int] | list[float], share: int) -> float:
    return float(np.percentile(values, share))


def test_the_measured_quantiles() -> None:
    sessions = draw_trace(200, seed=2).sessions
    turns = [turn for session in sessions for turn in session.turns]
    pairs = [pair for session in sessions for pair in zip(session.turns, session.turns[1:], strict=False)]
    repeated = [later.prompt.common_tokens(earlier.prompt) for earlier, later in pairs]
    new = [later.prompt_tokens - common for (_, later), common in zip(pairs, repeated, strict=True)]
    tools = [later.gap_seconds for earlier, later in pairs if earlier.end == "tool_call"]
    persons = [later.gap_seconds for earlier, later in pairs if earlier.end == "end_of_turn"]
    inputs, outputs = [turn.prompt_tokens for turn in turns], [turn.output_tokens for turn in turns]
    drawn = {
        "input p50": quantile(inputs, 50),
        "input p90": quantile(inputs, 90),
        "output p50": quantile(outputs, 50),
        "output p90": quantile(outputs, 90),
        "new p50": quantile(new, 50),
        "new p90": quantile(new, 90),
        "turns p50": quantile([len(session.turns) for session in sessions], 50),
        "tool gap p50": quantile(tools, 50),
        "person gap p50": quantile(persons, 50),
    }
    assert drawn == pytest.approx(MEASURED, rel=0.1)
    assert sum(gap <= 60 for gap in tools) / len(tools) == pytest.approx(0.88, abs=0.01)
    assert sum(repeated) / sum(inputs) == pytest.approx(0.964, abs=0.005)


def told(session: Session) -> list[object]:
    return [
        session.session_id,
        *((t.prompt.contents.tolist(), t.prompt.ends.tolist(), t.gap_seconds, t.end) for t in session.turns),
    ]


def test_a_seed_makes_the_sessions() -> None:
    few, more, others = draw_trace(2, seed=5), draw_trace(3, seed=5), draw_trace(2, seed=6)
    assert [told(item) for item in few.sessions] == [told(item) for item in more.sessions[:2]]
    assert told(few.sessions[0]) != told(others.sessions[0])
    starts = [session.arrival_seconds for session in more.sessions]
    assert starts == sorted(starts) and starts[0] == 0


def test_all_sessions_share_their_beginning() -> None:
    first, second = (session.turns[0].prompt for session in draw_trace(2, seed=1).sessions)
    assert first.common_tokens(second) == 15_200
