"""How a plan's strings are put in rich tables."""

from __future__ import annotations

from rich.markup import escape

from .units import printable


def shown(text: str) -> str:
    """Text from a plan, as it is: no markup, no control characters."""
    return escape(printable(text))
