"""GLM 4.5 and later, Ling 3: <tool_call>NAME with pairs of <arg_key> and <arg_value>."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .tagged_arguments import TaggedArguments
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
_LONGEST_NAME = 256


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from cursor.spaces()
    name, after = yield from cursor.until(("\n", _KEY, _CLOSE), _LONGEST_NAME)
    arguments = TaggedArguments(cursor, output, tools, name.strip())
    if after == "\n":
        yield from cursor.spaces()
        after = _KEY if (yield from cursor.accept(_KEY)) else ""
    while after == _KEY:
        key, _ = yield from cursor.until((_KEY_END,), _LONGEST_NAME)
        yield from cursor.spaces()
        yield from cursor.expect(_VALUE)
        yield from arguments.read(key.strip(), (_VALUE_END,))
        yield from cursor.spaces()
        after = _KEY if (yield from cursor.accept(_KEY)) else ""
    if after != _CLOSE:
        yield from cursor.expect(_CLOSE)
    arguments.end()


GLM = ToolFormat(
    name="glm45",
    recognises=lambda template: _OPEN in template and _KEY in template and _VALUE in template,
    marks=(_OPEN, _CLOSE, _KEY, _KEY_END, _VALUE, _VALUE_END),
    opens=(_OPEN,),
    calls=_calls,
)
