"""Calls as a tag with the tool's name, and a tag for each parameter inside."""

from __future__ import annotations

from dataclasses import dataclass

from .answer_parts import Output
from .cursor import Cursor, Steps
from .tagged_arguments import TaggedArguments
from .tool_schemas import ToolSchemas

_LONGEST_NAME = 256


@dataclass(frozen=True)
class TaggedCalls:
    """`call` NAME `named`, then `parameter` KEY `named` VALUE `parameter_end` any number of times, then `call_end`.

    `lines`: values stand on lines of their own, whose breaks are none of them.
    """

    call: str
    parameter: str
    named: str
    call_end: str
    parameter_end: str
    lines: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return (self.call, self.parameter, self.call_end, self.parameter_end)

    def read(self, cursor: Cursor, output: Output, tools: ToolSchemas) -> Steps[None]:
        """One call, from behind `call` on."""
        name, _ = yield from cursor.until((self.named,), _LONGEST_NAME)
        arguments = TaggedArguments(cursor, output, tools, name)
        ends = (f"\n{self.parameter_end}", self.parameter_end) if self.lines else (self.parameter_end,)
        while True:
            yield from cursor.spaces()
            if not (yield from cursor.accept(self.parameter)):
                break
            key, _ = yield from cursor.until((self.named,), _LONGEST_NAME)
            if self.lines:
                yield from cursor.accept("\n")
            yield from arguments.read(key, ends)
        yield from cursor.expect(self.call_end)
        arguments.end()
