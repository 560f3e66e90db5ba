"""Answers to content and calls, while they come."""

from __future__ import annotations

from collections.abc import Callable

from .answer_parts import AnswerPart, Enough, Output
from .attempt import attempt
from .cursor import Cursor, Steps
from .tool_format import ToolFormat
from .tool_schemas import ToolSchemas


class AnswerReader:
    """Feed an answer's text with `push`, and `finish` it; the parts of one fed whole are those of one fed in pieces, joined.

    `hidden` are the marks that are special tokens to the model: where they belong to no call they are left out. `thinking`: the
    prompt ends within a reasoning block. `single`: the first call ends the answer. `called` hears id and arguments of each whole
    call.
    """

    def __init__(
        self,
        tool_format: ToolFormat,
        tools: ToolSchemas,
        *,
        gap: str | None = None,
        hidden: frozenset[str] = frozenset(),
        thinking: bool = False,
        single: bool = False,
        called: Callable[[str, str], object] | None = None,
    ) -> None:
        self._cursor = Cursor()
        self._output = Output(self._cursor, new_id=tool_format.new_id, gap=gap, single=single, called=called)
        if tool_format.answer is not None:
            self._steps = tool_format.answer(self._cursor, self._output, tools)
        else:
            self._steps = _marked_answer(self._cursor, self._output, tool_format, tools, hidden, thinking)
        self.ended = False
        """Whether there is nothing more to come: all that was wanted is there, or the answer is finished."""

    @property
    def calls(self) -> int:
        """Whole calls so far."""
        return self._output.whole_calls

    def push(self, text: str) -> AnswerPart:
        self._cursor.push(text)
        self._run()
        return self._output.take()

    def finish(self) -> AnswerPart:
        self._cursor.end()
        self._run()
        self._output.flush()
        return self._output.take()

    def _run(self) -> None:
        if self.ended:
            return
        try:
            next(self._steps)
        except (StopIteration, Enough):
            self.ended = True


def _marked_answer(
    cursor: Cursor, output: Output, tool_format: ToolFormat, tools: ToolSchemas, hidden: frozenset[str], thinking: bool
) -> Steps[None]:
    """Text with calls in it, each behind a mark."""
    assert tool_format.calls is not None
    if not tool_format.in_reasoning:
        yield from _reasoning(cursor, output, tool_format.thinking, thinking)
    if tool_format.bare:
        yield from attempt(cursor, output, tool_format.calls(cursor, output, tools, ""))
    marks = (*tool_format.opens, *(hidden - {*tool_format.opens}))
    while (mark := (yield from cursor.pass_on(marks, output.text))) is not None:
        if mark in tool_format.opens:
            opening = "" if mark in hidden else mark
            yield from attempt(cursor, output, tool_format.calls(cursor, output, tools, mark), opening)


def _reasoning(cursor: Cursor, output: Output, marks: tuple[str, str], thinking: bool) -> Steps[None]:
    """Pass over a reasoning block at the beginning: what it says of calls is none."""
    output.text((yield from cursor.spaces()))
    begin, end = marks
    if (yield from cursor.accept(begin)):
        output.text(begin)
        thinking = True
    if thinking and (yield from cursor.pass_on((end,), output.text)):
        output.text(end)
