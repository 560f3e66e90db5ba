"""Mistral: [TOOL_CALLS] before a JSON list of calls, or before each call as NAME[ARGS]JSON, some with [CALL_ID] between."""

from __future__ import annotations

from .answer_parts import Output, nine_characters
from .cursor import Cursor, Malformed, Steps
from .json_call import read_json_call
from .json_text import pass_value
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_LONGEST_NAME = 256


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from cursor.spaces()
    if (yield from cursor.accept("[")):
        yield from _list(cursor, output)
        return
    name, after = yield from cursor.until((_ID, _ARGUMENTS), _LONGEST_NAME)
    identity = None
    if after == _ID:
        identity, _ = yield from cursor.until((_ARGUMENTS,), _LONGEST_NAME)
    yield from cursor.spaces()
    if not (yield from cursor.before("{")):
        raise Malformed
    output.start(name.strip(), identity)
    yield from pass_value(cursor, output.arguments)
    output.end()


def _list(cursor: Cursor, output: Output) -> Steps[None]:
    while True:
        yield from cursor.spaces()
        yield from read_json_call(cursor, output)
        yield from cursor.spaces()
        if not (yield from cursor.accept(",")):
            break
    yield from cursor.accept("]")


MISTRAL = ToolFormat(
    name="mistral",
    recognises=lambda template: _OPEN in template,
    marks=(_OPEN, _ID, _ARGUMENTS),
    opens=(_OPEN,),
    calls=_calls,
    in_reasoning=True,
    new_id=nine_characters,
)
