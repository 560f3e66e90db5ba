"""How long a step takes on the plan's machine: the cost model (plans/perf_model.py) asked about a step's own rows and copies."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...plans.host_tier import HOST_LINK
from ...plans.perf_model import StepCost, step_cost
from ...plans.schema import Manifest, Performance
from ...plans.stages import of_stage, performance_of
from ..scheduling.step import BlockCopies, GroupedStep, Step, StepBatch
from .errors import SimulationError


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step, stage after stage (one where the plan has none), and `roofline`: what all its work would keep one rank
    busy for at the plan's rates, without launches, collectives, padding and copies, the mean of all ranks."""

    stages: tuple[float, ...]
    roofline: float


class StepTimes:
    """What steps of one plan take. A step takes at least what its block copies take over the host link, each way apart."""

    def __init__(self, manifest: Manifest) -> None:
        performance, count = manifest.performance, len(manifest.stages)
        link = performance.rates.get(HOST_LINK)
        rate = link.value if link is not None else None
        if manifest.stages:
            bytes_of = [of_stage(manifest, number).kv.pool_block_bytes for number in range(count)]
            parts = [performance_of(manifest, stage) for stage in manifest.stages]
        else:
            bytes_of, parts = [manifest.kv.pool_block_bytes], [performance]
        self._stages = tuple(_Stage(part, size, rate) for part, size in zip(parts, bytes_of, strict=True))
        self._buckets = sorted(c.rows for c in performance.step_costs) if manifest.target.row_padding == "bucket" else []

    def __call__(self, step: Step) -> StepTime:
        """Groups of ranks meet in every step: it takes what the slowest takes at the rows of the largest.

        Raises SimulationError when a step has copies and the plan has no rate of its host link.
        """
        if isinstance(step, StepBatch) and len(self._stages) == 1:  # all that most plans ever need
            work, stage = _Work.of(step), self._stages[0]
            return StepTime((stage.seconds(work, self._padded(work.rows)),), stage.roofline(work))
        groups = step.parts if isinstance(step, GroupedStep) else (step,)
        works = [_Work.of(part) for part in groups if part is not None]
        rows = self._padded(max(work.rows for work in works))
        seconds = tuple(max(stage.seconds(work, rows) for work in works) for stage in self._stages)
        return StepTime(seconds, self._roofline(works, len(groups)))

    def roofline(self, step: Step) -> float:
        """`StepTime.roofline` alone; a plan without a rate of its host link has it too."""
        groups = step.parts if isinstance(step, GroupedStep) else (step,)
        return self._roofline([_Work.of(part) for part in groups if part is not None], len(groups))

    def _roofline(self, works: Sequence[_Work], groups: int) -> float:
        return sum(stage.roofline(work) for work in works for stage in self._stages) / len(self._stages) / groups

    def _padded(self, rows: int) -> int:
        at = bisect_left(self._buckets, rows)
        return self._buckets[at] if at < len(self._buckets) else rows


@dataclass(frozen=True, slots=True)
class _Work:
    """Of one group: rows, (query, key) pairs of all of them, tokens whose K and V they read, and the part itself where it has
    copies."""

    rows: int
    pairs: int
    context: int
    copies: StepBatch | None

    @classmethod
    def of(cls, part: StepBatch) -> _Work:
        rows, contexts = part.rows, part.context_lengths
        context = int(np.add.reduce(contexts, dtype=np.int64))
        pairs = context if rows == len(contexts) else int(np.add.reduce(part.positions, dtype=np.int64)) + rows
        return cls(rows, pairs, context, part if part.saves or part.loads else None)


class _Stage:
    """One stage: its cost table is evaluated once for each number of rows."""

    def __init__(self, performance: Performance, block_bytes: tuple[int, ...], link: float | None) -> None:
        rates = performance.rates
        self._performance, self._block_bytes, self._link = performance, block_bytes, link
        self._compute, self._bandwidth = rates["compute"].value, rates["bandwidth"].value
        self._dispatch = rates["dispatch"].value
        self._costs: dict[int, StepCost] = {}

    def seconds(self, work: _Work, padded_rows: int) -> float:
        """As `perf_model.step_seconds`, but at least as long as the copies."""
        if not padded_rows:
            return 0.0 if work.copies is None else self._copies(work.copies)
        cost = self._cost(padded_rows)
        computing = self._line(cost, work) + cost.instructions * self._dispatch + cost.communication
        return computing if work.copies is None else max(computing, self._copies(work.copies))

    def roofline(self, work: _Work) -> float:
        return self._line(self._cost(work.rows), work) if work.rows else 0.0

    def _line(self, cost: StepCost, work: _Work) -> float:
        performance = self._performance
        flops = cost.flops + performance.attention_flops_per_token_pair * work.pairs
        moved = cost.weight_bytes + cost.activation_bytes + performance.kv_bytes_per_token * work.context
        return max(flops / self._compute, moved / self._bandwidth)

    def _cost(self, rows: int) -> StepCost:
        cost = self._costs.get(rows)
        if cost is None:
            cost = self._costs[rows] = step_cost(self._performance, rows)
        return cost

    def _copies(self, part: StepBatch) -> float:
        if self._link is None:
            raise SimulationError(
                "the plan does not say how fast its host link is",
                where=f"performance.rates.{HOST_LINK}",
                expected="a rate in B/s, since KV blocks go to host memory and back",
                got="none",
                fix=f'compile the plan again, or name the rate: --rates FILE with {{"{HOST_LINK}": 5e10}}',
            )
        return max(self._bytes(part.saves), self._bytes(part.loads)) / self._link

    def _bytes(self, copies: Iterable[BlockCopies]) -> int:
        return sum(len(copy.device) * self._block_bytes[copy.pool] for copy in copies)
