"""Folding a sequence of layer kinds into repeated patterns, so that a program's size does not grow with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LONGEST_PATTERN = 16


@dataclass(frozen=True)
class RepeatedPattern:
    """`pattern` (a kind per layer) `count` times from layer `first` on; consecutive rounds are len(pattern) layers apart."""

    first: int
    count: int
    pattern: tuple[int, ...]

    @property
    def covered(self) -> int:
        return self.count * len(self.pattern)


def fold(kinds: Sequence[int]) -> tuple[RepeatedPattern, ...]:
    """The kinds in order as few repeated patterns: at each point the pattern that covers most, the shortest on a tie."""
    folded: list[RepeatedPattern] = []
    start = 0
    while start < len(kinds):
        candidates = [_repeat_at(kinds, start, length) for length in range(1, LONGEST_PATTERN + 1)]
        best = max(candidates, key=lambda found: (found.covered if found.count > 1 else 1, -len(found.pattern)))
        folded.append(best)
        start += best.covered
    return tuple(folded)


def _repeat_at(kinds: Sequence[int], start: int, length: int) -> RepeatedPattern:
    pattern = tuple(kinds[start : start + length])
    count = 1
    while tuple(kinds[start + count * length : start + (count + 1) * length]) == pattern:
        count += 1
    return RepeatedPattern(start, count, pattern)
