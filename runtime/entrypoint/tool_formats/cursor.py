"""A place in text that is still arriving. What reads it is a generator that yields where it needs more, so that a format is
written down in the order in which a model writes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from ..held_back import possible_start

Value = TypeVar("Value")
Steps = Generator[None, None, Value]
"""Yields where more text is needed; to be resumed when there is some, or when there is no more."""

_SPACE = " \t\r\n"


class Malformed(Exception):
    """What was taken for a call is none."""


class Cursor:
    """`push` what comes, `end` when nothing more does. What is decided depends on the text alone, never on how it was cut."""

    def __init__(self) -> None:
        self._unread, self.ended = "", False
        self._taken: list[str] = []
        self._opening = ""

    def push(self, text: str) -> None:
        self._unread += text

    def end(self) -> None:
        self.ended = True

    def mark(self, opening: str = "") -> None:
        """Remember this place, for `rewind`; `opening` stood before it."""
        self._taken, self._opening = [], opening

    def rewind(self) -> str:
        """Back to the marked place; returns its opening."""
        self._unread = "".join(self._taken) + self._unread
        opening = self._opening
        self.mark()
        return opening

    def available(self) -> str:
        return self._unread

    def take(self, count: int) -> str:
        text, self._unread = self._unread[:count], self._unread[count:]
        self._taken.append(text)
        return text

    def wait(self) -> Steps[bool]:
        """For more text; False when there is none to come."""
        if self.ended:
            return False
        yield
        return True

    def spaces(self) -> Steps[str]:
        """Take white space, all of it."""
        spaces = ""
        while True:
            spaces += self.take(len(self._unread) - len(self._unread.lstrip(_SPACE)))
            if self._unread or not (yield from self.wait()):
                return spaces

    def before(self, literal: str) -> Steps[bool]:
        """Whether `literal` comes next. It is not taken."""
        while len(self._unread) < len(literal) and literal.startswith(self._unread):
            if not (yield from self.wait()):
                return False
        return self._unread.startswith(literal)

    def accept(self, literal: str) -> Steps[bool]:
        """Take `literal` if it comes next."""
        if not (yield from self.before(literal)):
            return False
        self.take(len(literal))
        return True

    def expect(self, literal: str) -> Steps[None]:
        """Raises Malformed when anything else comes next."""
        if not (yield from self.accept(literal)):
            raise Malformed

    def pass_on(self, marks: Sequence[str], emit: Callable[[str], object]) -> Steps[str | None]:
        """Give text to `emit` as it comes, up to the first of `marks`, which is taken and returned; None: the text ended."""
        while True:
            found = [(position, mark) for mark in marks if (position := self._unread.find(mark)) >= 0]
            if found:
                position, mark = min(found)
                if position:
                    emit(self.take(position))
                self.take(len(mark))
                return mark
            ready = len(self._unread) - (0 if self.ended else possible_start(self._unread, marks))
            if ready:
                emit(self.take(ready))
            if not (yield from self.wait()):
                return None

    def until(self, marks: Sequence[str], most: int = 1 << 30) -> Steps[tuple[str, str]]:
        """The text before the first of `marks`, and which it is. Raises Malformed when none comes within `most` characters."""
        parts: list[str] = []
        length = 0

        def collect(part: str) -> None:
            nonlocal length
            length += len(part)
            if length > most:
                raise Malformed
            parts.append(part)

        mark = yield from self.pass_on(marks, collect)
        if mark is None:
            raise Malformed
        return "".join(parts), mark
