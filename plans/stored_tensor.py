"""Where a tensor lies in a weight file, and what a header reader says when the file is not sound."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Bytes [start, stop) of the file."""

    name: str
    encoding: str
    shape: tuple[int, ...]
    start: int
    stop: int


class HeaderError(Exception):
    """A header that cannot be believed: what was expected and what was found."""

    def __init__(self, expected: str, got: object) -> None:
        super().__init__(f"expected {expected}, got {got}")
        self.expected, self.got = expected, str(got)[:200]
