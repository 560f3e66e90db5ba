"""Tokens of text, begin tokens, and the bytes of single tokens."""

from __future__ import annotations

import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.tokenizer import Tokenizer

from .entrypoint.tiny_tokenizers import BEGIN, byte_level, sentencepiece_like


def test_the_begin_token_is_added_once() -> None:
    tokenizer = Tokenizer(byte_level(), BEGIN)
    assert tokenizer.encode("hello", add_begin_token=True)[0] == BEGIN
    assert tokenizer.encode("<|begin|>hello", add_begin_token=True).count(BEGIN) == 1
    assert BEGIN not in tokenizer.encode("hello", add_begin_token=False)


def test_token_bytes_join_to_the_text() -> None:
    tokenizer = Tokenizer(byte_level())
    tokens = tokenizer.encode("naïve 😀", add_begin_token=False)
    assert b"".join(tokenizer.token_bytes(token) for token in tokens).decode() == "naïve 😀"
    assert tokenizer.token_bytes(10**6) == b""


def test_byte_tokens_and_word_marks_of_sentencepiece() -> None:
    tokenizer = Tokenizer(sentencepiece_like())
    assert not tokenizer.byte_level
    spelled = b"".join(tokenizer.token_bytes(token) for token in tokenizer.encode("ab é", add_begin_token=False))
    assert spelled.decode() == " ab é"


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"decoder": 1}'])
def test_a_broken_file_is_refused_cleanly(data: bytes) -> None:
    with pytest.raises(PlanError, match="tokenizer"):
        Tokenizer(data)
