"""DeepSeek: V3 and R1 write a name and fenced JSON after the word "function", V3.1 the name and plain JSON."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Steps
from .marked_calls import MarkedCalls
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_OPEN, _CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _CALL_END, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
_FENCE = "```json"

_FENCED = MarkedCalls(f"{_CALL}function{_SEPARATOR}", f"\n{_FENCE}", f"```{_CALL_END}", _CLOSE)
_PLAIN = MarkedCalls(_CALL, _SEPARATOR, _CALL_END, _CLOSE)


def _fenced(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from _FENCED.read(cursor, output)


def _plain(cursor: Cursor, output: Output, tools: ToolSchemas, mark: str) -> Steps[None]:
    yield from _PLAIN.read(cursor, output)


DEEPSEEK_V3 = ToolFormat(
    name="deepseek_v3",
    recognises=lambda template: _CALL in template and _FENCE in template,
    marks=(_OPEN, _CLOSE, _CALL, _CALL_END, _SEPARATOR),
    opens=(_OPEN,),
    calls=_fenced,
    in_reasoning=True,
)
DEEPSEEK_V31 = ToolFormat(
    name="deepseek_v31",
    recognises=lambda template: _CALL in template and _FENCE not in template,
    marks=DEEPSEEK_V3.marks,
    opens=(_OPEN,),
    calls=_plain,
    in_reasoning=True,
)
