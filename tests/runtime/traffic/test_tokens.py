"""Prompts as tokens: equal contents are equal tokens, answers stand where the next prompt has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenspeed.runtime.traffic.contents import Vocabulary, derived, named, renamed, tokens_of
from tokenspeed.runtime.traffic.session import Prompt, Session, Turn
from tokenspeed.runtime.traffic.tokens import SessionTokens

WORDS = Vocabulary(10, 50_000)


def prompt(*spans: tuple[int, int]) -> Prompt:
    """Of (content, tokens) pairs."""
    return Prompt(np.array([content for content, _ in spans], np.uint64), np.cumsum([tokens for _, tokens in spans]))


def session(*turns: tuple[Prompt, int]) -> Session:
    return Session("one", tuple(Turn(item, output) for item, output in turns))


def array(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def test_equal_contents_are_equal_tokens() -> None:
    first, second = tokens_of(prompt((1, 4), (2, 4), (9, 3)), WORDS), tokens_of(prompt((1, 4), (2, 4), (3, 4)), WORDS)
    assert first.dtype == np.int32 and first.min() >= 10 and first.max() < 50_010 and len(first) == 11
    assert (first[:8] == second[:8]).all() and not (first[8:] == second[8:11]).any()
    assert (tokens_of(prompt((2, 2), (1, 4)), WORDS)[2:] == first[:4]).all()
    assert (tokens_of(prompt((1, 4), (2, 4)), WORDS, 1) == first[4:8]).all()


def test_shared_contents_are_the_same_in_every_session() -> None:
    shared, own = named("system", shared=True), named("session", 3)
    family, single = derived(shared, np.arange(3)), derived(own, np.arange(3))
    assert (renamed(family, 7) == family).all()
    assert not np.isin(renamed(single, 7), single).any()
    assert len(set(family.tolist()) | set(single.tolist()) | set(renamed(single, 7).tolist())) == 9


def test_common_beginnings() -> None:
    one = prompt((1, 4), (2, 4), (3, 2))
    assert one.common(prompt((1, 4), (2, 4), (3, 4))) == 2 and one.common_tokens(prompt((1, 4), (2, 4), (3, 4))) == 10
    assert one.common_tokens(prompt((1, 4), (5, 4))) == 4 and one.common_tokens(one) == len(one) == 10
    assert one.common_tokens(prompt((7, 4))) == 0


def test_the_output_is_what_the_next_prompt_has() -> None:
    tokens = SessionTokens(
        session((prompt((1, 4), (2, 2)), 3), (prompt((1, 4), (2, 4), (3, 4)), 4), (prompt((1, 4), (5, 3)), 1)), WORDS
    )
    first, output = tokens.prompt(0), tokens.output(0)
    assert (np.concatenate((first, output)) == tokens.prompt(1)[:9]).all()
    assert tokens.shared(0) == 0 and tokens.shared(1) == 9
    # the last prompt left the conversation: nothing of the answer is in it
    assert len(tokens.output(1)) == 4 and tokens.shared(2) == 4
    assert (tokens.prompt(2)[:4] == first[:4]).all() and len(tokens.output(2)) == 1


def test_a_dropped_part_of_an_answer_has_no_place() -> None:
    tokens = SessionTokens(session((prompt((1, 4)), 6), (prompt((1, 4), (2, 2)), 1)), WORDS)
    output = tokens.output(0)
    assert len(output) == 6 and (output[:2] == tokens.prompt(1)[4:]).all() and tokens.shared(1) == 6


def test_real_answers_stay_in_the_conversation() -> None:
    turns = session((prompt((1, 4)), 2), (prompt((1, 4), (2, 4)), 2), (prompt((1, 4), (2, 4), (3, 4)), 1))
    tokens = SessionTokens(turns, WORDS)
    traced = tokens.prompt(1)
    tokens.answered(0, array(1, 2))
    second = tokens.prompt(1)
    assert second[4:6].tolist() == [1, 2] and (second[6:] == traced[6:]).all() and tokens.shared(1) == 6
    tokens.answered(1, array(3, 4, 5, 6, 7))
    assert tokens.prompt(2).tolist() == [*second.tolist(), 3, 4, 5, 6] and tokens.shared(2) == 12
