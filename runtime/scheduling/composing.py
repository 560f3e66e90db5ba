"""How many rows of prompts a step may have beside its decoding rows, by the seconds it is predicted to take."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ...plans.perf_model import StepWork
from .costs import StepCosts

_ONE_ROW = 1.1
"""Where there is no time for any, a prompt may have rows that take so many times as long as one."""


class StepTime:
    """A step as it is composed: decoding rows (`work`), to which chunks of prompts are added as long as it takes no more than
    `target` seconds, or than the decoding rows alone take divided by 1 - `prefill_share`.

    So prompts have at least that share of the time, and never less in a step than what takes about as long as one row. Where
    steps are padded, rows go to the edge of the bucket at which the most of them are done in a second.
    """

    def __init__(self, costs: StepCosts, work: StepWork, target: float, prefill_share: float) -> None:
        self._costs, self._work = costs, work
        self.limit = max(target, costs.step_seconds(work) / (1 - prefill_share))
        self._chunks = 0

    def rows_within(self, start: int, most: int) -> int:
        """Of a prompt whose next row is at `start`, how many rows there is time for, at most `most`."""
        if self._seconds(start, most) <= self.limit:
            return most
        there, buckets = int(self._work.rows), self._costs.buckets
        first, last = bisect_right(buckets, there), bisect_left(buckets, there + most)
        edges = [edge - there for edge in buckets[first:last]]
        fit = bisect_right(edges, self.limit, key=lambda rows: self._seconds(start, rows))
        beyond = edges[fit] if fit < len(edges) else most
        if not fit:
            return self._few(start, beyond)
        candidates = edges[max(0, fit - 2) : fit]
        if self._seconds(start, candidates[-1] + 1) <= self.limit:
            candidates.append(self._search(start, candidates[-1] + 1, beyond, self.limit))
        return max(candidates, key=lambda rows: rows / self._seconds(start, rows))

    def add(self, start: int, rows: int) -> None:
        self._work = self._work.with_chunk(start, rows)
        self._chunks += 1

    def _few(self, start: int, beyond: int) -> int:
        """As `rows_within`, where fewer than `beyond` rows fit. Of the first prompt there are some, whatever they take."""
        if self._chunks:
            return self._search(start, 0, beyond, self.limit)
        limit = max(self.limit, _ONE_ROW * self._seconds(start, 1))
        if self._seconds(start, beyond) <= limit:
            return beyond
        return self._search(start, 1, beyond, limit)

    def _search(self, start: int, low: int, high: int, limit: float) -> int:
        """The most rows, from `low`, which fit, and below `high`, that take no longer than `limit`."""
        while low + 1 < high:
            middle = (low + high) // 2
            if self._seconds(start, middle) <= limit:
                low = middle
            else:
                high = middle
        return low

    def _seconds(self, start: int, rows: int) -> float:
        return self._costs.step_seconds(self._work.with_chunk(start, rows))
