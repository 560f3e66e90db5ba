"""Tool calls are seen however the answer is cut into pieces, and whether or not their marks are text."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Library
from tokenspeed.runtime.entrypoint.tool_calls import ToolCallWatch, tool_call_tokens
from tokenspeed.runtime.tokenizer import Tokenizer

from .tiny_tokenizers import byte_level


def found(text: str, *, tools: bool = False, piece: int = 1) -> bool:
    watch = ToolCallWatch(frozenset(), tools=tools)
    for start in range(0, len(text), piece):
        watch.see(text[start : start + piece], (), None)
    return watch.found


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_marks_in_the_text(piece: int) -> None:
    assert found("I look.\n<tool_call>\n{}", piece=piece)
    assert found("[TOOL_CALLS]look", piece=piece)
    assert not found("a tool_call is < 5 and > 3", piece=piece)
    assert found(' \n{"type": "function", "name": "look", "parameters": {"at": 1}}', tools=True, piece=piece)
    assert not found('{"name": "look", "parameters": {}}', piece=piece)
    assert not found('The answer is {"name": 1, "arguments": 2}', tools=True, piece=piece)


def test_marks_that_are_tokens() -> None:
    library = Library.from_str(byte_level().decode())
    library.add_special_tokens([AddedToken("<|python_tag|>", special=True), AddedToken("<|call|>", special=True)])
    tokens = tool_call_tokens(Tokenizer(library.to_str().encode()))
    assert len(tokens) == 2
    for seen, stop, expected in ((min(tokens), None, True), (5, max(tokens), True), (5, 1, False), (5, "text", False)):
        watch = ToolCallWatch(tokens, tools=False)
        watch.see("", (seen,), stop)
        assert watch.found == expected
    assert tool_call_tokens(None) == frozenset()
