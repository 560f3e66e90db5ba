"""Hermes, Qwen 2.5 and 3 and many others: <tool_call> around a JSON object."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .json_call import read_json_call
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_OTHERS = ("<tool_calls>", "<invoke", "<arg_key>", "<parameter=")
"""Marks of formats that say something else within the same tag."""


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from cursor.spaces()
    yield from read_json_call(cursor, output)
    yield from cursor.spaces()
    yield from cursor.accept(_CLOSE)


HERMES = ToolFormat(
    name="hermes",
    recognises=lambda template: _OPEN in template and "arguments" in template and not any(mark in template for mark in _OTHERS),
    marks=(_OPEN, _CLOSE),
    opens=(_OPEN,),
    calls=_calls,
)
