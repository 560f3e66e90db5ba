"""Seed OSS: <function=NAME> with <parameter=KEY> inside, within <seed:tool_call>."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .tagged_calls import TaggedCalls
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<seed:tool_call>", "</seed:tool_call>"
_TAGS = TaggedCalls("<function=", "<parameter=", ">", "</function>", "</parameter>")


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from cursor.spaces()
    yield from cursor.expect(_TAGS.call)
    yield from _TAGS.read(cursor, output, tools)
    yield from cursor.spaces()
    yield from cursor.accept(_CLOSE)


SEED = ToolFormat(
    name="seed_oss",
    recognises=lambda template: _OPEN in template,
    marks=(_OPEN, _CLOSE, *_TAGS.marks),
    opens=(_OPEN,),
    calls=_calls,
    thinking=("<seed:think>", "</seed:think>"),
)
