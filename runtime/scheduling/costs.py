"""What a plan predicts that work takes: the cost model (plans/perf_model.py) as the scheduler asks it, many times a step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import inf

from ...plans.perf_model import StepCost, chunk_token_pairs, prefill_chunks, seconds_of_cost, step_cost
from ...plans.schema import Manifest, Performance
from ...plans.stages import performance_of

NOMINAL_ROW_SECONDS = 1e-4
"""Of a row where nothing is predicted: then rows are counted, and only their ratios mean something."""

_PATIENCE = 4.0
"""A sequence's tokens may be so many times as far apart as the plan predicts for its traffic."""

_CACHED_ROWS = 65536
_LEAST_SECONDS = 1e-12
"""Of a row where the model says that more rows take no longer, so that rows count for something."""


class StepCosts:
    """Predicted seconds. `stages` are the performance of each stage of a pipeline, or one; the slowest counts.

    `buckets` are the row counts that steps are padded to, in ascending order (empty: none), `chunk` is rows of one prompt in one
    step, and `copy_rate` bytes per second between device and host (0: there is no link).

    `inter_token_seconds` is how far a sequence's tokens may be apart where nobody says. `row_seconds`, `token_seconds` of context
    and `pair_seconds` are what one more of each takes at most.
    """

    def __init__(
        self,
        stages: Sequence[Performance],
        buckets: Sequence[int],
        chunk: int,
        copy_rate: float = 0.0,
        inter_token_seconds: float = inf,
    ) -> None:
        self._stages = tuple((stage, lru_cache(_CACHED_ROWS)(_costs_of(stage))) for stage in stages)
        self._buckets, self._chunk, self._copy_rate = tuple(buckets), chunk, copy_rate
        self.inter_token_seconds = inter_token_seconds
        few, many = stages[0].step_costs[0].rows, stages[0].step_costs[-1].rows
        grown = self.step_seconds(many, 0, 0) - self.step_seconds(few, 0, 0)
        self.row_seconds = max(grown / max(1, many - few), _LEAST_SECONDS)
        self.token_seconds = max(stage.kv_bytes_per_token / stage.rates["bandwidth"].value for stage in stages)
        self.pair_seconds = max(stage.attention_flops_per_token_pair / stage.rates["compute"].value for stage in stages)
        self.decode_token_seconds = self.token_seconds + self.pair_seconds

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> StepCosts:
        performance, padded = manifest.performance, manifest.target.row_padding == "bucket"
        stages = [performance_of(manifest, stage) for stage in manifest.stages] or [performance]
        link = performance.rates.get("host_link")
        buckets = sorted(cost.rows for cost in performance.step_costs) if padded else ()
        rate, usual = link.value if link is not None else 0.0, performance.predictions.get("tpot_seconds", inf)
        return cls(stages, buckets, manifest.schedule.prefill_chunk, rate, _PATIENCE * usual)

    def padded_rows(self, rows: int) -> int:
        """The rows that a step of `rows` rows is run with."""
        at = bisect_left(self._buckets, rows)
        return self._buckets[at] if at < len(self._buckets) else rows

    def step_seconds(self, rows: int, token_pairs: float, context_tokens: float) -> float:
        """One step: `token_pairs` (query, key) pairs over all rows, and the K and V of `context_tokens` tokens."""
        rows = self.padded_rows(rows)
        return max(seconds_of_cost(stage, cost(rows), token_pairs, context_tokens) for stage, cost in self._stages)

    def prefill_seconds(self, tokens: int, cached: int) -> float:
        """A prompt of `tokens` tokens of which the first `cached` are cached, alone on the machine, in chunks."""
        chunks = prefill_chunks(tokens, cached, self._chunk)
        return sum(self.step_seconds(count, chunk_token_pairs(before, count), before + count) for before, count in chunks)

    def copy_seconds(self, count: float) -> float:
        """`count` bytes between device and host, one way."""
        return count / self._copy_rate if self._copy_rate else inf


def _costs_of(performance: Performance) -> Callable[[int], StepCost]:
    def cost(rows: int) -> StepCost:
        return step_cost(performance, rows)

    return cost
