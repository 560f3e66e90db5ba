"""How long a step takes on the plan's machine: the cost model (plans/perf_model.py) asked about a step's own rows and copies."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from ...plans.host_tier import HOST_LINK
from ...plans.perf_model import StepModel, StepWork
from ...plans.schema import Manifest, Performance
from ...plans.stages import of_stage, performance_of
from ..block_tier import reads
from ..scheduling.costs import work_of
from ..scheduling.step import BlockCopies, GroupedStep, Step, StepBatch
from .errors import SimulationError


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step, stage after stage (one where the plan has none), and `roofline`: what all its work would keep one rank
    busy for at the plan's rates, without launches, collectives, padding and copies, the mean of all ranks."""

    stages: tuple[float, ...]
    roofline: float


class StepTimes:
    """What steps of one plan take. A step takes at least what its block copies take over the host link, each way apart, and rows
    that read what it loads come after all of that, as measured: layers are waited for one by one, but loads cut so are slower.
    """

    def __init__(self, manifest: Manifest) -> None:
        performance, count = manifest.performance, len(manifest.stages)
        link = performance.rates.get(HOST_LINK)
        rate = link.value if link is not None else None
        if manifest.stages:
            bytes_of = [of_stage(manifest, number).kv.pool_block_bytes for number in range(count)]
            parts = [performance_of(manifest, stage) for stage in manifest.stages]
        else:
            bytes_of, parts = [manifest.kv.pool_block_bytes], [performance]
        self._stages = tuple(
            _Stage(part, size, manifest.kv.pool_blocks, rate) for part, size in zip(parts, bytes_of, strict=True)
        )
        self._buckets = sorted(c.rows for c in performance.step_costs) if manifest.target.row_padding == "bucket" else []

    def __call__(self, step: Step) -> StepTime:
        """Groups of ranks meet in every step: it takes what the slowest takes at the rows of the largest.

        Raises SimulationError when a step has copies and the plan has no rate of its host link.
        """
        if isinstance(step, StepBatch) and len(self._stages) == 1:  # all that most plans ever need
            work, stage = _work(step), self._stages[0]
            return StepTime((stage.seconds(work, step, self._padded(step.rows)),), stage.roofline(work))
        groups = step.parts if isinstance(step, GroupedStep) else (step,)
        works = [(_work(part), part) for part in groups if part is not None]
        rows = self._padded(max(part.rows for _, part in works))
        seconds = tuple(max(stage.seconds(work, part, rows) for work, part in works) for stage in self._stages)
        return StepTime(seconds, self._roofline([work for work, _ in works], len(groups)))

    def roofline(self, step: Step) -> float:
        """`StepTime.roofline` alone; a plan without a rate of its host link has it too."""
        groups = step.parts if isinstance(step, GroupedStep) else (step,)
        return self._roofline([_work(part) for part in groups if part is not None], len(groups))

    def _roofline(self, works: Sequence[StepWork], groups: int) -> float:
        return sum(stage.roofline(work) for work in works for stage in self._stages) / len(self._stages) / groups

    def _padded(self, rows: int) -> int:
        at = bisect_left(self._buckets, rows)
        return self._buckets[at] if at < len(self._buckets) else rows


def _work(part: StepBatch) -> StepWork:
    return work_of(part.decode_rows, part.positions, part.context_lengths)


class _Stage:
    """One stage, with its part of the blocks that are copied."""

    def __init__(
        self, performance: Performance, block_bytes: tuple[int, ...], blocks: tuple[int, ...], link: float | None
    ) -> None:
        """`blocks` and `block_bytes` are of each pool."""
        self._model, self._block_bytes, self._link = StepModel(performance), block_bytes, link
        self._blocks = dict(enumerate(blocks))

    def seconds(self, work: StepWork, part: StepBatch, padded_rows: int) -> float:
        """As the cost model says, but at least as long as the copies; behind loads that its own rows read."""
        computing = self._model.seconds(work, padded_rows) if padded_rows else 0.0
        if not (part.saves or part.loads):
            return computing
        saves, loads = self._copies(part.saves), self._copies(part.loads)
        if part.loads and reads(part, part.loads, self._blocks):
            computing += loads
        return max(computing, saves, loads)

    def roofline(self, work: StepWork) -> float:
        return self._model.roofline(work) if work.rows else 0.0

    def _copies(self, copies: Sequence[BlockCopies]) -> float:
        if self._link is None:
            raise SimulationError(
                "the plan does not say how fast its host link is",
                where=f"performance.rates.{HOST_LINK}",
                expected="a rate in B/s, since KV blocks go to host memory and back",
                got="none",
                fix=f'compile the plan again, or name the rate: --rates FILE with {{"{HOST_LINK}": 5e10}}',
            )
        return sum(len(copy.device) * self._block_bytes[copy.pool] for copy in copies) / self._link
