"""Calls that are one JSON object with a name and arguments."""

from __future__ import annotations

from collections.abc import Container

from .answer_parts import Output
from .cursor import Cursor, Malformed, Steps
from .json_text import pass_value, read_string, read_value

_ARGUMENTS = ("arguments", "parameters")
_BESIDE = ("type", "id")


def read_json_call(cursor: Cursor, output: Output, known: Container[str] | None = None) -> Steps[None]:
    """Members may come in any order; arguments that come before the name wait for it, and none are an empty object.

    With `known`, what is neither a call of one of these tools, nor has members of a call alone, is Malformed.
    """
    name: str | None = None
    held: str | None = None
    started = False
    yield from cursor.expect("{")
    while True:
        yield from cursor.spaces()
        key = yield from read_string(cursor)
        yield from cursor.spaces()
        yield from cursor.expect(":")
        yield from cursor.spaces()
        if key == "name" and name is None:
            name = yield from read_string(cursor)
            if known is not None and name not in known:
                raise Malformed
        elif key in _ARGUMENTS and not started and held is None:
            if not (yield from cursor.before("{")):
                raise Malformed
            if name is None:
                held = yield from read_value(cursor)
            else:
                started = True
                output.start(name)
                yield from pass_value(cursor, output.arguments)
        elif known is not None and key not in _BESIDE:
            raise Malformed
        else:
            yield from read_value(cursor)
        if name is not None and held is not None and not started:
            started = True
            output.start(name)
            output.arguments(held)
        yield from cursor.spaces()
        if not (yield from cursor.accept(",")):
            break
    yield from cursor.expect("}")
    if name is None:
        raise Malformed
    if not started:
        output.start(name)
        output.arguments("{}")
    output.end()
