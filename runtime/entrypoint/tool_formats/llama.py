"""Llama 3.1, 3.2 and 3.3: the answer is a JSON object with name and parameters, with or without <|python_tag|> before it."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .json_call import read_json_call
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_TAG = "<|python_tag|>"
_INSTRUCTION = '{"name": function name, "parameters"'


def _calls(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    """Several calls have `;` or white space between them. An object without the tag must name one of the request's tools: any
    answer may be JSON."""
    while True:
        yield from cursor.spaces()
        yield from read_json_call(cursor, output, None if mark else tools)
        yield from cursor.spaces()
        if (yield from cursor.accept(";")):
            yield from cursor.spaces()
        if not (yield from cursor.before("{")):
            return


LLAMA = ToolFormat(
    name="llama3_json",
    recognises=lambda template: (_TAG in template or _INSTRUCTION in template) and "<function=" not in template,
    marks=(_TAG,),
    opens=(_TAG,),
    calls=_calls,
    bare=True,
)
