"""However an answer is cut into pieces, it is read alike; nothing that comes makes a reader fail or lose text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenspeed.runtime.entrypoint.tool_formats.names import NAMES

from .writing import BY_NAME, WRITERS, Call, calls_of, read

LETTERS = st.text(st.sampled_from(list('ab<>{}[]|/"\\=:;, \n_é😀')), max_size=8)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**20) | st.floats(allow_nan=False, allow_infinity=False) | LETTERS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(LETTERS, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": LETTERS,
        "number": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "flag": st.booleans(),
        "list": st.lists(VALUES, max_size=2),
        "object": st.none() | st.dictionaries(LETTERS, VALUES, max_size=2),
    },
)
CALLS: st.SearchStrategy[list[Call]] = st.lists(st.tuples(st.sampled_from(["look", "look_up.all-of:it"]), ARGUMENTS), max_size=2)
CUTS = st.lists(st.integers(0, 400), max_size=12)
TEXT = st.text(st.sampled_from(list("ab<>{[| \n")), max_size=6)
SCRAPS = (
    *("<think>", "</think>", "<function=", "look", ">", "function", "<|channel|>analysis", " to=functions.look", "\n```json\n"),
    *('{"name": "look"', ', "arguments": {', '"a": ', "}", "}}", "1", '"', "\\", "\n", " ", ";", ",", "[", "]", "x"),
)


def cut(text: str, cuts: list[int]) -> list[str]:
    places = [0, *sorted(place for place in cuts if place < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(places)]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(calls=CALLS, text=TEXT, gap=st.sampled_from([None, "", "\n"]), cuts=CUTS)
def test_what_was_written_is_read(name: str, calls: list[Call], text: str, gap: str | None, cuts: list[int]) -> None:
    if name == "harmony":
        calls, text = calls[:1], ""
    if name == "llama3_json" and calls:
        text = ""
    written = text + (WRITERS[name](calls) if calls else "")
    whole = read(name, [written], gap=gap)
    assert calls_of(whole) == calls
    assert whole.text.rstrip() == text.rstrip()
    assert read(name, cut(written, cuts), gap=gap) == whole
    assert read(name, list(written), gap=gap) == whole


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data(), cuts=CUTS, thinking=st.booleans(), single=st.booleans(), special=st.booleans())
def test_anything_is_read_alike_in_pieces(
    name: str, data: st.DataObject, cuts: list[int], thinking: bool, single: bool, special: bool
) -> None:
    marks = BY_NAME[name].marks
    calls = WRITERS[name]([("look", {"text": "a", "number": 1})])
    scraps = [*marks, *SCRAPS, calls, calls[: len(calls) // 2], calls[len(calls) // 3 :]]
    text = "".join(data.draw(st.lists(st.sampled_from(scraps), max_size=10)))
    options: dict[str, Any] = {"hidden": frozenset(marks if special else ()), "thinking": thinking, "single": single, "gap": "\n"}
    whole = read(name, [text], **options)
    assert read(name, cut(text, cuts), **options) == whole
    assert read(name, list(text), **options) == whole
    if name != "harmony" and not special and not any(call.whole for call in whole.calls):
        assert whole.text == text
    calls_of(whole)
