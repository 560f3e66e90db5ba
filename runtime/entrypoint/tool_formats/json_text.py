"""Where a JSON value ends in text that is still arriving, and that it is one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from .cursor import Cursor, Malformed, Steps

_SPACE = " \t\r\n"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR_PART = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_DEEPEST = 200
_LONGEST_SCALAR = 1000


class JsonText:
    """Follows one value. A number or a word ends before the character after it, which is not read."""

    def __init__(self) -> None:
        self.done = False
        self._closers: list[str] = []
        self._scalar, self._hex_digits, self._in_key = "", 0, False
        self._step: Callable[[str, int], int] = self._value

    def read(self, text: str) -> int:
        """How many characters of `text` belong to the value. Raises Malformed where the first one does not that should."""
        at = 0
        while at < len(text) and not self.done:
            try:
                at = self._step(text, at)
            except Malformed:
                if not at:
                    raise
                break  # what comes before counts, as it would have if it had come alone
        return at

    def _value(self, text: str, at: int) -> int:
        character = text[at]
        if character in _SPACE:
            return at + 1
        if character == '"':
            self._in_key, self._step = False, self._string
        elif character in "{[":
            self._closers.append("}" if character == "{" else "]")
            self._step = self._first_key if character == "{" else self._first_item
            if len(self._closers) > _DEEPEST:
                raise Malformed
        else:
            self._scalar, self._step = "", self._in_scalar
            return at
        return at + 1

    def _first_item(self, text: str, at: int) -> int:
        if text[at] == "]":
            return self._after(text, at)
        if text[at] not in _SPACE:
            self._step = self._value
            return at
        return at + 1

    def _first_key(self, text: str, at: int) -> int:
        return self._after(text, at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> int:
        if text[at] == '"':
            self._in_key, self._step = True, self._string
        elif text[at] not in _SPACE:
            raise Malformed
        return at + 1

    def _colon(self, text: str, at: int) -> int:
        if text[at] == ":":
            self._step = self._value
        elif text[at] not in _SPACE:
            raise Malformed
        return at + 1

    def _after(self, text: str, at: int) -> int:
        character = text[at]
        if character == self._closers[-1]:
            self._closers.pop()
            self._value_ended()
        elif character == ",":
            self._step = self._key if self._closers[-1] == "}" else self._value
        elif character not in _SPACE:
            raise Malformed
        return at + 1

    def _string(self, text: str, at: int) -> int:
        plain = _PLAIN.match(text, at)
        if plain:
            return plain.end()
        if text[at] == "\\":
            self._step = self._escape
        elif text[at] != '"':
            raise Malformed
        elif self._in_key:
            self._step = self._colon
        else:
            self._value_ended()
        return at + 1

    def _escape(self, text: str, at: int) -> int:
        if text[at] == "u":
            self._hex_digits, self._step = 4, self._unicode
        elif text[at] in '"\\/bfnrt':
            self._step = self._string
        else:
            raise Malformed
        return at + 1

    def _unicode(self, text: str, at: int) -> int:
        if text[at] not in "0123456789abcdefABCDEF":
            raise Malformed
        self._hex_digits -= 1
        if not self._hex_digits:
            self._step = self._string
        return at + 1

    def _in_scalar(self, text: str, at: int) -> int:
        part = _SCALAR_PART.match(text, at, at + _LONGEST_SCALAR - len(self._scalar))
        if part:
            self._scalar += part[0]
            return part.end()
        if not _SCALAR.fullmatch(self._scalar):
            raise Malformed
        self._value_ended()
        return at

    def _value_ended(self) -> None:
        self.done = not self._closers
        self._step = self._after


def pass_value(cursor: Cursor, emit: Callable[[str], object]) -> Steps[None]:
    """Give a JSON value to `emit` as it comes. Raises Malformed when it is none, or not all of one."""
    value = JsonText()
    while True:
        count = value.read(cursor.available())
        if count:
            emit(cursor.take(count))
        if value.done:
            return
        if not (yield from cursor.wait()):
            raise Malformed


def read_value(cursor: Cursor) -> Steps[str]:
    """The text of a JSON value."""
    parts: list[str] = []
    yield from pass_value(cursor, parts.append)
    return "".join(parts)


def read_string(cursor: Cursor) -> Steps[str]:
    if not (yield from cursor.before('"')):
        raise Malformed
    return json.loads((yield from read_value(cursor)))
