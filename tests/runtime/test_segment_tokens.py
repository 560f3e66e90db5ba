"""Remembered segments give the tokens that the whole text has, to whoever may know of them."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.segment_tokens import SegmentTokens, cuts_of
from tokenspeed.runtime.tokenizer import Tokenizer

from .entrypoint.tiny_tokenizers import SPECIAL, byte_level, sentencepiece_like

WORDS = [
    "e\u0301",
    "\u0301",
    " ",
    "  ",
    "\n",
    "hello",
    " world",
    "é",
    "😀",
    "<",
    "|",
    "<|user",
    "12",
    "x" * 70,
    " the lazy dog" * 7,
]
TOKENIZER = Tokenizer(byte_level())
NORMALISING = Tokenizer(json.dumps(json.loads(byte_level()) | {"normalizer": {"type": "NFC"}}).encode())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS + SPECIAL), max_size=12), min_size=1, max_size=4))
def test_the_same_tokens_whatever_was_asked_before(parts: list[list[str]]) -> None:
    text = ""
    for part in parts:
        text += "".join(part)
        for tokenizer in (TOKENIZER, NORMALISING) * 2:
            assert tokenizer.encode(text, add_begin_token=False, scope="s") == tokenizer.encode(text, add_begin_token=False)


CUTS = re.compile("|".join(re.escape(text) for text in sorted(SPECIAL, key=len, reverse=True)))


def test_what_is_sent_again_is_not_tokenized_again() -> None:
    asked: list[str] = []

    def encode(text: str) -> list[int]:
        asked.append(text)
        return TOKENIZER.encode(text, add_begin_token=False)

    segments = SegmentTokens(encode, CUTS, most=300)
    first = "<|user|>" + "hello " * 20
    second = "<|assistant|>" + "world " * 20
    for text, fresh in ((first, [first]), (first + second, [second]), (first + second + "<|user|>more", ["<|user|>more"])):
        assert segments.encode(text, "a") == TOKENIZER.encode(text, add_begin_token=False)
        assert asked == fresh
        asked.clear()
    segments.encode(first, "b")
    assert asked == [first] and len(segments) == 2  # 300 characters hold two of them


def cuts_of_file(data: bytes) -> object:
    file = json.loads(data)
    return cuts_of(file["added_tokens"], file["normalizer"], file["pre_tokenizer"])


def test_tokenizers_whose_segments_depend_on_each_other_are_not_cut() -> None:
    assert cuts_of_file(byte_level()) == CUTS
    assert cuts_of_file(sentencepiece_like()) is None
    level, plain = {"type": "ByteLevel", "add_prefix_space": False}, {"content": "<a>", "normalized": False}
    assert cuts_of([plain], None, {"type": "Sequence", "pretokenizers": [{"type": "Split"}, level]}) is not None
    assert cuts_of([], None, level) is None and cuts_of([plain], None, None) is None
    assert cuts_of([plain], {"type": "Sequence", "normalizers": [{"type": "NFC"}]}, level) is not None
    assert cuts_of([plain], {"type": "Prepend"}, level) is None
    assert cuts_of([plain], None, {"type": "ByteLevel", "add_prefix_space": True}) is None
    assert cuts_of([plain, plain | {"rstrip": True}], None, level) is None


def test_the_longest_special_token_is_cut_at() -> None:
    cuts = cuts_of([{"content": text, "normalized": False} for text in ("<a>", "<a>b", "c+")], None, {"type": "Digits"})
    assert cuts is not None
    assert [match[0] for match in cuts.finditer("x<a>b<a>c+cc")] == ["<a>b", "<a>", "c+"]


@pytest.mark.parametrize("scope", [None, "s"])
def test_the_begin_token_is_added_once(scope: str | None) -> None:
    tokenizer = Tokenizer(byte_level(), 0)
    for _ in range(2):
        assert tokenizer.encode("<|user|>hello", add_begin_token=True, scope=scope)[0] == 0
        assert tokenizer.encode("<|begin|>hello", add_begin_token=True, scope=scope).count(0) == 1
