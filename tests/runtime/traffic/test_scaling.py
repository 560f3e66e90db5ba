"""Traces made smaller, faster, longer: beginnings stay equal, what is left out is counted."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.traffic import scaling
from tokenspeed.runtime.traffic.contents import named
from tokenspeed.runtime.traffic.session import Left, Prompt, Session, Trace, Turn

SHARED = named("system", shared=True)


def prompt(*spans: tuple[int, int]) -> Prompt:
    return Prompt(np.array([content for content, _ in spans], np.uint64), np.cumsum([tokens for _, tokens in spans]))


def trace() -> Trace:
    first = prompt((SHARED, 64), (1, 30))
    second = prompt((SHARED, 64), (1, 64), (2, 64), (3, 1))
    turns = (Turn(first, 40, 0.0, 5.0), Turn(second, 8, 30.0, 40.0))
    return Trace("here", (Session("a", turns), Session("b", (Turn(prompt((9, 10)), 2, 0.0, 7.0),))))


@pytest.mark.parametrize("factor", [0.5, 0.1, 0.013, 0.001, 2.0])
def test_contexts_keep_their_common_beginning(factor: float) -> None:
    scaled = scaling.scale_context(trace(), factor).sessions[0].turns
    assert scaled[0].prompt_tokens == max(1, round(94 * factor)) and scaled[1].prompt_tokens == max(1, round(193 * factor))
    assert scaled[1].prompt.common_tokens(scaled[0].prompt) == scaled[0].prompt_tokens
    assert scaled[0].output_tokens == max(1, round(40 * factor))
    assert (np.diff(scaled[1].prompt.ends) > 0).all()


def test_time() -> None:
    turns = scaling.scale_time(trace(), 0.1).sessions[0].turns
    assert [(turn.gap_seconds, turn.arrival_seconds) for turn in turns] == [(0.0, 0.5), (3.0, 4.0)]
    assert scaling.cap_gaps(trace(), 12).sessions[0].turns[1].gap_seconds == 12
    spread = scaling.spread_arrivals(trace(), 2.0, seed=1).sessions
    assert spread[0].arrival_seconds == 0 < spread[1].arrival_seconds and spread[0].turns[1].arrival_seconds == 35


def test_what_does_not_fit_is_counted() -> None:
    cut = scaling.cut_at_context(trace(), 150)
    assert [len(session.turns) for session in cut.sessions] == [1, 1] and cut.left_out == Left(0, 1, 193, 8)
    assert scaling.cut_at_context(cut, 20).left_out == Left(1, 2, 193 + 94, 48)
    assert scaling.cut_at_context(trace(), 201).left_out == Left()
    assert scaling.cut_turns(trace(), 1).left_out.turns == 1


def test_more_sessions_than_there_are() -> None:
    many = scaling.with_sessions(trace(), 5).sessions
    assert [session.session_id for session in many] == ["a", "b", "a#2", "b#2", "a#3"]
    assert many[2].arrival_seconds == 45 and many[2].turns[1].gap_seconds == 30
    first, again = many[0].turns[1].prompt, many[2].turns[1].prompt
    assert again.common(first) == 1 and len(again) == len(first)
    assert again.common_tokens(many[2].turns[0].prompt) == 94
    fewer = scaling.with_sessions(trace(), 1)
    assert len(fewer.sessions) == 1 and fewer.left_out == Left(1, 1, 10, 2)


def test_another_seed() -> None:
    first, second = scaling.with_seed(trace(), 1).sessions, scaling.with_seed(trace(), 2).sessions
    assert first[0].turns[1].prompt.common_tokens(first[0].turns[0].prompt) == 94
    assert second[0].turns[1].prompt.common_tokens(first[0].turns[1].prompt) == 0
    again = scaling.with_sessions(scaling.with_seed(trace(), 1), 4).sessions
    assert again[2].turns[0].prompt.common(again[0].turns[0].prompt) == 1
