"""How many blocks a window takes."""

from __future__ import annotations


def window_blocks(window: int, rows: int, block_tokens: int) -> int:
    """The most blocks that what `rows` consecutive rows see may lie in, themselves included, wherever blocks begin."""
    tokens = window - 1 + rows
    return (tokens + block_tokens - 2) // block_tokens + 1
