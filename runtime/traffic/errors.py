"""What can be wrong with a trace."""

from __future__ import annotations

from ...plans.errors import UsageError

FORMATS = ("claude-code", "mooncake", "azure", "texts")


class TraceError(UsageError):
    """A trace cannot be read: `where` names the file and, of a file of lines, the line."""


def bad_place(place: str, expected: str, got: str) -> TraceError:
    return TraceError("This is not a request of the trace's format.", where=place, expected=expected, got=got[:200])
