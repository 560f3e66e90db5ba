"""Kimi K2: calls by an id of the model's own, functions.NAME:NUMBER, which its template and its users' answers repeat."""

from __future__ import annotations

import re

from .answer_parts import Output
from .cursor import Cursor, Steps
from .marked_calls import MarkedCalls
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _CALL_END, _ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_call_argument_begin|>"
_ID = re.compile(r"(?:functions\.)?(.+?)(?::[0-9]+)?")


def _header(header: str) -> tuple[str, str | None]:
    identity = header.strip()
    found = _ID.fullmatch(identity)
    return found[1] if found else "", identity


_SECTION = MarkedCalls(_CALL, _ARGUMENTS, _CALL_END, _CLOSE, _header)


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from _SECTION.read(cursor, output)


KIMI = ToolFormat(
    name="kimi_k2",
    recognises=lambda template: _OPEN in template,
    marks=(_OPEN, _CLOSE, _CALL, _CALL_END, _ARGUMENTS),
    opens=(_OPEN,),
    calls=_calls,
    in_reasoning=True,
)
