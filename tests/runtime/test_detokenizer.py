"""Streamed text is the whole text, and never half a character."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.detokenizer import WindowDetokenizer, detokenizer
from tokenspeed.runtime.tokenizer import Tokenizer

from .entrypoint import tiny_tokenizers

BYTE_LEVEL = Tokenizer(tiny_tokenizers.byte_level())
SENTENCEPIECE = Tokenizer(tiny_tokenizers.sentencepiece_like())
CHARACTERS = st.one_of(st.sampled_from("ab cé漢字😀👩‍👧\ufffd\n"), st.characters(exclude_categories=["Cs"]))
TEXT = st.text(CHARACTERS, max_size=40)


def pieces(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    stream = detokenizer(tokenizer)
    return [*(stream.push(token) for token in tokens), stream.flush()]


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_byte_level_text_comes_back_whole(text: str) -> None:
    streamed = pieces(BYTE_LEVEL, BYTE_LEVEL.encode(text, add_begin_token=False))
    assert "".join(streamed) == text
    assert "".join(streamed).count("\ufffd") == text.count("\ufffd")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.vocabulary + 3), max_size=60))
def test_byte_level_agrees_with_the_library_on_any_tokens(tokens: list[int]) -> None:
    assert "".join(pieces(BYTE_LEVEL, tokens)) == BYTE_LEVEL.decode(tokens)


@settings(max_examples=200, deadline=None)
@given(TEXT)
def test_sentencepiece_text_is_the_whole_decode(text: str) -> None:
    tokens = SENTENCEPIECE.encode(text, add_begin_token=False)
    streamed = pieces(SENTENCEPIECE, tokens)
    assert "".join(streamed) == SENTENCEPIECE.decode(tokens)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(3, 258), max_size=100))
def test_invalid_bytes_are_held_for_a_bounded_time(tokens: list[int]) -> None:
    stream = WindowDetokenizer(SENTENCEPIECE)
    for token in tokens:
        stream.push(token)
        assert len(stream._window) < 100
    assert isinstance(stream.flush(), str)


def test_emoji_appears_only_when_complete() -> None:
    tokens = BYTE_LEVEL.encode("a😀b", add_begin_token=False)
    assert len(tokens) > 3
    assert [piece for piece in pieces(BYTE_LEVEL, tokens) if piece] == ["a", "😀", "b"]


def test_an_unfinished_character_is_flushed_as_replacement() -> None:
    tokens = BYTE_LEVEL.encode("😀", add_begin_token=False)[:-1]
    assert "".join(pieces(BYTE_LEVEL, tokens)) == "\ufffd"


def test_special_tokens_are_skipped_unless_asked_for() -> None:
    tokens = BYTE_LEVEL.encode("hello<|end|>", add_begin_token=False)
    assert "".join(pieces(BYTE_LEVEL, tokens)) == "hello"
    stream = detokenizer(BYTE_LEVEL, skip_special_tokens=False)
    assert "".join(stream.push(token) for token in tokens) == "hello<|end|>"


def test_text_continues_the_prompt_with_its_space() -> None:
    prompt, more = (SENTENCEPIECE.encode(text, add_begin_token=False) for text in ("ab", "b"))
    stream = detokenizer(SENTENCEPIECE, prompt)
    assert "".join(stream.push(token) for token in more) == " b"


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE])
def test_work_per_token_does_not_grow(tokenizer: Tokenizer) -> None:
    decoded: list[int] = []
    stream = WindowDetokenizer(tokenizer)
    decode = stream._decode
    stream._decode = lambda tokens: decoded.append(len(tokens)) or decode(tokens)
    for token in tokenizer.encode("ab 😀 " * 300, add_begin_token=False):
        stream.push(token)
    assert max(decoded) <= 24
