"""Reading what may be a call."""

from __future__ import annotations

from .answer_parts import Output
from .cursor import Cursor, Malformed, Steps


def attempt(cursor: Cursor, output: Output, steps: Steps[None], opening: str = "") -> Steps[bool]:
    """Whether `steps` went through. If not, all from the last whole call on is to be read again, behind `opening` as text."""
    cursor.mark(opening)
    try:
        yield from steps
    except Malformed:
        output.broken()
        output.text(cursor.rewind())
        return False
    cursor.mark()
    return True
