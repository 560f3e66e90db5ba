"""What an answer is made of, as it is found out."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .cursor import Cursor, Malformed

_SPACE = " \t\r\n"
_NAME = re.compile(r"[^\s<>\"'{}\[\]()]{1,256}")
_COMPACT_ID = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class CallPart:
    """News of call `index`: id and name with its first part alone, the next piece of its arguments' JSON text; whether it is
    whole now. A call that never is was malformed: all its text is content, too."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""
    whole: bool = False

    def joined(self, later: CallPart) -> CallPart:
        return CallPart(self.index, self.arguments + later.arguments, self.id, self.name, self.whole or later.whole)


@dataclass(frozen=True)
class AnswerPart:
    """News of an answer, at most one part for each call."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()

    def joined(self, later: AnswerPart) -> AnswerPart:
        return AnswerPart(self.text + later.text, self.reasoning + later.reasoning, joined_calls((*self.calls, *later.calls)))


def joined_calls(parts: Iterable[CallPart]) -> tuple[CallPart, ...]:
    """One part for each call."""
    calls: dict[int, CallPart] = {}
    for part in parts:
        known = calls.get(part.index)
        calls[part.index] = known.joined(part) if known else part
    return tuple(calls.values())


class Enough(Exception):
    """The one call that was wanted is there."""


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def nine_characters() -> str:
    """An id as Mistral's templates insist on."""
    return "".join(secrets.choice(_COMPACT_ID) for _ in range(9))


class Output:
    """Where readers put what they find. White space before a call waits: of it `gap`, which the template puts there itself, is
    no content (None: none of it is). `called` hears id and arguments of each whole call; with `single` the first one ends all
    by Enough."""

    def __init__(
        self,
        cursor: Cursor,
        *,
        new_id: Callable[[], str] = call_id,
        gap: str | None = None,
        single: bool = False,
        called: Callable[[str, str], object] | None = None,
    ) -> None:
        self._cursor, self._new_id, self._gap, self._single, self._called = cursor, new_id, gap, single, called
        self.whole_calls = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._parts: list[CallPart] = []
        self._space = self._dropped = ""
        self._index, self._id = -1, ""
        self._arguments: list[str] = []
        self._in_call = self._has_text = False

    def text(self, text: str) -> None:
        text = self._space + text
        shown = text.rstrip(_SPACE)
        self._space = text[len(shown) :]
        self._has_text = self._has_text or bool(shown)
        self._text.append(shown)

    def reasoning(self, text: str) -> None:
        self._reasoning.append(text)

    def start(self, name: str, identity: str | None = None) -> None:
        """A call begins. Raises Malformed for what is no name."""
        if not _NAME.fullmatch(name):
            raise Malformed
        kept = self._kept_space()
        self._text.append(self._space[:kept])
        self._space, self._dropped = "", self._space[kept:]
        self._index += 1
        self._id, self._arguments, self._in_call = identity or self._new_id(), [], True
        self._parts.append(CallPart(self._index, id=self._id, name=name))

    def arguments(self, piece: str) -> None:
        self._arguments.append(piece)
        self._parts.append(CallPart(self._index, piece))

    def end(self) -> None:
        """The call is whole: what follows is on its own."""
        self._parts.append(CallPart(self._index, whole=True))
        self._in_call = False
        self.whole_calls += 1
        self._cursor.mark()
        if self._called:
            self._called(self._id, "".join(self._arguments))
        if self._single:
            raise Enough

    def broken(self) -> None:
        """What was begun is no call."""
        if self._in_call:
            self._space = self._dropped
        self._in_call = False

    def flush(self) -> None:
        """The answer ends. White space after its last call is none of it."""
        if not self.whole_calls:
            self._text.append(self._space)
        self._space = ""

    def _kept_space(self) -> int:
        """How much of the white space before a call is content. Alone it is none."""
        if self._gap is None or not self._space.endswith(self._gap) or not self._has_text:
            return 0
        return len(self._space) - len(self._gap)

    def take(self) -> AnswerPart:
        """What is new since the last time."""
        part = AnswerPart("".join(self._text), "".join(self._reasoning), joined_calls(self._parts))
        self._text, self._reasoning, self._parts = [], [], []
        return part
