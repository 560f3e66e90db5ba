"""Qwen3 Coder, Qwen 3.5, Nemotron 3, Step 3.5: <function=NAME> with <parameter=KEY> inside, within <tool_call>."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .tagged_arguments import TaggedArguments
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _PARAMETER = "<function=", "<parameter="
_FUNCTION_END, _PARAMETER_END = "</function>", "</parameter>"
_LONGEST_NAME = 256


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    """Models forget the outer tag at times."""
    if mark == _OPEN:
        spaces = yield from cursor.spaces()
        yield from cursor.expect(_FUNCTION)
        cursor.mark(mark + spaces + _FUNCTION)  # if it is no call with both tags, it is none with the inner one
    name, _ = yield from cursor.until((">",), _LONGEST_NAME)
    arguments = TaggedArguments(cursor, output, tools, name)
    while True:
        yield from cursor.spaces()
        if not (yield from cursor.accept(_PARAMETER)):
            break
        key, _ = yield from cursor.until((">",), _LONGEST_NAME)
        yield from cursor.accept("\n")
        yield from arguments.read(key, (f"\n{_PARAMETER_END}", _PARAMETER_END))
    yield from cursor.expect(_FUNCTION_END)
    arguments.end()
    yield from cursor.spaces()
    yield from cursor.accept(_CLOSE)


QWEN_CODER = ToolFormat(
    name="qwen3_coder",
    recognises=lambda template: _OPEN in template and _FUNCTION in template and _PARAMETER in template,
    marks=(_OPEN, _CLOSE, _FUNCTION, _FUNCTION_END, _PARAMETER, _PARAMETER_END),
    opens=(_OPEN, _FUNCTION),
    calls=_calls,
)
