"""What a format of tool calls is to those who read answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .answer_parts import Output, call_id
from .cursor import Cursor, Steps
from .tool_schemas import ToolSchemas

CallsReader = Callable[[Cursor, Output, ToolSchemas, str], Steps[None]]
AnswerReaderSteps = Callable[[Cursor, Output, ToolSchemas], Steps[None]]


@dataclass(frozen=True)
class ToolFormat:
    """`recognises` says of a chat template's source whether its model writes calls so.

    Calls begin at one of `opens`, and `calls` reads from behind it; `bare`: at the answer's beginning without any, too. `marks`
    are all of the format's, since a tokenizer may have them as special tokens, which no answer shows otherwise. `thinking`: marks
    around a reasoning block. `in_reasoning`: marks mean calls within one, too, as nobody writes them by the way. `answer` reads
    all of an answer instead, for models that write messages.
    """

    name: str
    recognises: Callable[[str], bool]
    marks: tuple[str, ...]
    opens: tuple[str, ...] = ()
    calls: CallsReader | None = None
    bare: bool = False
    in_reasoning: bool = False
    thinking: tuple[str, str] = ("<think>", "</think>")
    answer: AnswerReaderSteps | None = None
    new_id: Callable[[], str] = call_id
