"""Calls whose name and arguments stand between marks, several of them in a section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .answer_parts import Output
from .cursor import Cursor, Malformed, Steps
from .json_text import pass_value

_LONGEST_HEADER = 600


def _name_alone(header: str) -> tuple[str, str | None]:
    return header.strip(), None


@dataclass(frozen=True)
class MarkedCalls:
    """A section is `call` HEADER `arguments` JSON `end`, any number of times, and `section_end`. `header` gives name and id."""

    call: str
    arguments: str
    end: str
    section_end: str
    header: Callable[[str], tuple[str, str | None]] = _name_alone

    def read(self, cursor: Cursor, output: Output) -> Steps[None]:
        """From behind the section's first mark. The closing marks may be missing: models forget them."""
        before = output.whole_calls
        while True:
            yield from cursor.spaces()
            if not (yield from cursor.accept(self.call)):
                break
            header, _ = yield from cursor.until((self.arguments,), _LONGEST_HEADER)
            yield from cursor.spaces()
            if not (yield from cursor.before("{")):
                raise Malformed
            output.start(*self.header(header))
            yield from pass_value(cursor, output.arguments)
            output.end()
            yield from cursor.spaces()
            yield from cursor.accept(self.end)
        if output.whole_calls == before:
            raise Malformed
        yield from cursor.accept(self.section_end)
