"""Qwen3 Coder, Qwen 3.5, Nemotron 3, Step 3.5: <function=NAME> with <parameter=KEY> inside, within <tool_call>."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .tagged_calls import TaggedCalls
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TAGS = TaggedCalls("<function=", "<parameter=", ">", "</function>", "</parameter>", lines=True)


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    """Models forget the outer tag at times."""
    if mark == _OPEN:
        spaces = yield from cursor.spaces()
        yield from cursor.expect(_TAGS.call)
        cursor.mark(mark + spaces + _TAGS.call)  # if it is no call with both tags, it is none with the inner one
    yield from _TAGS.read(cursor, output, tools)
    yield from cursor.spaces()
    yield from cursor.accept(_CLOSE)


QWEN_CODER = ToolFormat(
    name="qwen3_coder",
    recognises=lambda template: _OPEN in template and _TAGS.call in template and _TAGS.parameter in template,
    marks=(_OPEN, _CLOSE, *_TAGS.marks),
    opens=(_OPEN, _TAGS.call),
    calls=_calls,
)
