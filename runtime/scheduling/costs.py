"""What a plan predicts that work takes: the cost model (plans/perf_model.py) as the scheduler asks it, many times a step."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import inf

import numpy as np

from ...plans.perf_model import StepModel, StepWork, chunk_work, prefill_chunks
from ...plans.schema import Manifest, Performance
from ...plans.stages import performance_of
from .step import IntArray

NOMINAL_ROW_SECONDS = 1e-4
"""Of a row where nothing is predicted: then rows are counted, and only their ratios mean something."""

_PATIENCE = 8.0
"""A sequence's tokens may be so many times as far apart as the plan predicts for its traffic."""

_LEAST_SECONDS = 1e-12
"""Of a row where the model says that more rows take no longer, so that rows count for something."""


def work_of(decodes: int, positions: IntArray, contexts: IntArray) -> StepWork:
    """What a step has to do whose first `decodes` sequences decode; `positions` are those of rows, `contexts` of sequences."""
    rows = len(positions)
    if rows == decodes:
        return StepWork(rows, int(np.add.reduce(contexts, dtype=np.int64)))
    tokens = int(np.add.reduce(contexts[:decodes], dtype=np.int64)) if decodes else 0
    chunks, pairs = contexts[decodes:], int(np.add.reduce(positions[decodes:], dtype=np.int64)) + rows - decodes
    return StepWork(rows, tokens, pairs, int(np.add.reduce(chunks, dtype=np.int64)), int(np.maximum.reduce(chunks)))


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
        self._stages = tuple(map(StepModel, stages))
        self._alone = self._stages[0] if len(stages) == 1 else None
        self.buckets, self._chunk, self._copy_rate = tuple(buckets), chunk, copy_rate
        self.inter_token_seconds = inter_token_seconds
        few, many = stages[0].step_costs[0].rows, stages[0].step_costs[-1].rows
        grown = self.step_seconds(StepWork(many)) - self.step_seconds(StepWork(few))
        self.row_seconds = max(grown / max(1, many - few), _LEAST_SECONDS)
        self.token_seconds = max(stage.kv_bytes_per_token / stage.rates["bandwidth"].value for stage in stages)
        self.pair_seconds = max(stage.pair_seconds(many) for stage in self._stages)
        self.decode_token_seconds = max(stage.decode_token_seconds for stage in self._stages)

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> StepCosts:
        performance, padded = manifest.performance, manifest.target.row_padding == "bucket"
        stages = [performance_of(manifest, stage) for stage in manifest.stages] or [performance]
        link = performance.rates.get("host_link")
        buckets = sorted(cost.rows for cost in performance.step_costs) if padded else ()
        rate, usual = link.value if link is not None else 0.0, performance.predictions.get("tpot_seconds", inf)
        return cls(stages, buckets, manifest.schedule.prefill_chunk, rate, _PATIENCE * usual)

    def padded_rows(self, rows: float) -> float:
        """The rows that a step of `rows` rows is run with."""
        at = bisect_left(self.buckets, rows)
        return self.buckets[at] if at < len(self.buckets) else rows

    def step_seconds(self, work: StepWork) -> float:
        """One step."""
        rows = self.padded_rows(work.rows)
        if self._alone is not None:
            return self._alone.seconds(work, rows)
        return max(stage.seconds(work, rows) for stage in self._stages)

    def prefill_seconds(self, tokens: int, cached: int) -> float:
        """A prompt of `tokens` tokens of which the first `cached` are cached, alone on the machine, in chunks."""
        chunks = prefill_chunks(tokens, cached, self._chunk)
        return sum(self.step_seconds(chunk_work(before, count)) for before, count in chunks)

    def copy_seconds(self, count: float) -> float:
        """`count` bytes between device and host, one way."""
        return count / self._copy_rate if self._copy_rate else inf
