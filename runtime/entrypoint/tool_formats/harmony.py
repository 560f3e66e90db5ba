"""gpt-oss: an answer is several messages, each with a channel, and a call is one to functions.NAME."""

from __future__ import annotations

import re
from collections.abc import Callable

from .answer_parts import Output
from .attempt import attempt
from .cursor import Cursor, Malformed, Steps
from .json_text import pass_value
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas

_START, _CHANNEL, _MESSAGE, _CONSTRAIN = "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BREAKS = (_START, _CHANNEL, *_ENDS)
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_REASONING = re.compile(r"<\|channel\|>\s*analysis\b")
_HEADER = re.compile(r"(?:assistant)?(?:<\|channel\|>)?\s?\w*(?: to=\S*)?(?: ?<\|constrain\|>)?\s?\w*")
_FUNCTIONS = "functions."
_LONGEST_HEADER = 600


def _answer(cursor: Cursor, output: Output, tools: ToolSchemas) -> Steps[None]:
    """The prompt ends within the first message's header. What follows no header is text, and so are calls where no tools are
    offered."""
    heading = ""
    for first in (_CHANNEL, " to="):
        if (yield from cursor.accept(first)):
            heading = first
            break
    while True:
        emit = output.text
        if heading:
            emit = yield from _header(cursor, output, tools, heading)
        mark = yield from cursor.pass_on(_BREAKS, emit)
        if mark is None:
            return
        heading = mark if mark in (_START, _CHANNEL) else ""


def _header(cursor: Cursor, output: Output, tools: ToolSchemas, heading: str) -> Steps[Callable[[str], object]]:
    """The rest of a message's header, and the call behind it if it is one; returns where its text goes."""
    found: list[str] = []

    def read() -> Steps[None]:
        text, _ = yield from cursor.until((_MESSAGE,), _LONGEST_HEADER)
        found.append(heading + text)

    if not (yield from attempt(cursor, output, read())):
        if cursor.ended and _HEADER.fullmatch(cursor.available()):
            cursor.take(len(cursor.available()))  # the answer was cut off within a header
        return output.text
    recipient = _RECIPIENT.search(found[0])
    if recipient and len(tools) and recipient[1].startswith(_FUNCTIONS):
        yield from attempt(cursor, output, _call(cursor, output, recipient[1].removeprefix(_FUNCTIONS)))
        return output.text
    return output.reasoning if _REASONING.search(found[0]) else output.text


def _call(cursor: Cursor, output: Output, name: str) -> Steps[None]:
    yield from cursor.spaces()
    if not (yield from cursor.before("{")):
        raise Malformed
    output.start(name)
    yield from pass_value(cursor, output.arguments)
    output.end()


HARMONY = ToolFormat(
    name="harmony",
    recognises=lambda template: _CHANNEL in template and "commentary" in template and _FUNCTIONS in template,
    marks=(_START, _CHANNEL, _MESSAGE, _CONSTRAIN, *_ENDS),
    answer=_answer,
)
