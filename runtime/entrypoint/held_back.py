"""Text that may be the beginning of something, and so must wait for what follows."""

from __future__ import annotations

from collections.abc import Sequence


def possible_start(text: str, wanted: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of `wanted` and is not all of it."""
    first = {item[0] for item in wanted if item}
    for position in range(max(0, len(text) + 1 - max(map(len, wanted), default=0)), len(text)):
        if text[position] in first:
            end = text[position:]
            if any(item.startswith(end) for item in wanted):
                return len(end)
    return 0
