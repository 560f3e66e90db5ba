"""MiniMax M2: <invoke name="NAME"> with <parameter name="KEY"> inside, several of them within <minimax:tool_call>."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Malformed, Steps
from .tagged_calls import TaggedCalls
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<minimax:tool_call>", "</minimax:tool_call>"
_TAGS = TaggedCalls('<invoke name="', '<parameter name="', '">', "</invoke>", "</parameter>")


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    before = output.whole_calls
    while True:
        yield from cursor.spaces()
        if not (yield from cursor.accept(_TAGS.call)):
            break
        yield from _TAGS.read(cursor, output, tools)
    if output.whole_calls == before:
        raise Malformed
    yield from cursor.accept(_CLOSE)


MINIMAX = ToolFormat(
    name="minimax_m2",
    recognises=lambda template: _OPEN in template,
    marks=(_OPEN, _CLOSE, *_TAGS.marks),
    opens=(_OPEN,),
    calls=_calls,
)
