"""How many rows of prompts a step may have beside its decoding rows, by the seconds it is predicted to take."""

from __future__ import annotations

from ...plans.perf_model import chunk_token_pairs
from .costs import StepCosts


class StepTime:
    """A step as it is composed: `count` decoding rows that attend to `context` tokens, to which chunks of prompts are added as
    long as it takes no more than `target` seconds, or than the decoding rows alone take divided by 1 - `prefill_share`.

    So prompts have at least that share of the time, and never less than a row in a step.
    """

    def __init__(self, costs: StepCosts, count: int, context: float, target: float, prefill_share: float) -> None:
        self._costs = costs
        self._rows, self._pairs, self._context = count, context, context
        self.limit = max(target, costs.step_seconds(count, context, context) / (1 - prefill_share))
        self._chunks = 0

    def rows_within(self, start: int, most: int) -> int:
        """Of a prompt whose next row is at `start`, how many rows there is time for, at most `most`."""
        low, high = 0, most
        if self._seconds(start, most) <= self.limit:
            return most
        while low + 1 < high:
            middle = (low + high) // 2
            if self._seconds(start, middle) <= self.limit:
                low = middle
            else:
                high = middle
        return low if low or self._chunks else 1

    def add(self, start: int, rows: int) -> None:
        self._rows += rows
        self._pairs += chunk_token_pairs(start, rows)
        self._context += start + rows
        self._chunks += 1

    def _seconds(self, start: int, rows: int) -> float:
        pairs, context = self._pairs + chunk_token_pairs(start, rows), self._context + start + rows
        return self._costs.step_seconds(self._rows + rows, pairs, context)
