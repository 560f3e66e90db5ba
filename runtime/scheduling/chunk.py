"""Rows of a prompt in one step."""

from __future__ import annotations

from typing import NamedTuple

from .sequence import Sequence


class Chunk(NamedTuple):
    """`rows` prompt rows of a sequence from position `start`."""

    sequence: Sequence
    start: int
    rows: int
