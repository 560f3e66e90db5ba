"""Several steps in flight through the stages of a pipeline: how much each of them takes of what there is to do. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ...plans.perf_model import StepModel, StepWork
from ...plans.schema import Manifest
from ...plans.stages import performance_of

_LEAST_COST = 1e-12
"""Seconds of a row where the model says that more rows take no longer, so that rows count for something."""


@dataclass(frozen=True)
class Pipeline:
    """`depth` steps are in flight. `seconds`(rows, tokens of context that they attend to) is what the slowest stage takes."""

    depth: int
    seconds: Callable[[float, float], float]

    def decode_share(self, further: int, contexts: NDArray[np.int64], every: NDArray[np.int64]) -> int:
        """How many of the sequences that are ready, with `contexts` tokens each and in this order, a step takes, so that all
        steps take as long: a step's part of what `every` decoding sequence costs, in flight or not. `further` steps may follow at
        once; each finds a sequence if there are enough."""
        count = len(contexts)
        if count < 2:
            return count
        rows, context = len(every) / self.depth, float(every.sum()) / self.depth
        of_row = max(self.seconds(rows + 1, context) - self.seconds(rows, context), _LEAST_COST)
        of_token = max((self.seconds(rows, 2 * context + 1) - self.seconds(rows, context)) / (context + 1), 0.0)
        costs = np.cumsum(of_row + of_token * contexts)
        total = of_row * len(every) + of_token * float(every.sum())
        wanted = min(total / self.depth, float(costs[-1]) / (further + 1)) * (1 - 1e-9)
        enough = int(np.searchsorted(costs, wanted)) + 1
        over = float(costs[min(enough, count) - 1]) - wanted
        if enough > 1 and over > total / len(every) and over > wanted - float(costs[enough - 2]):
            enough -= 1  # the last one costs as much as many others: it is first in a later step
        return max(1, min(enough, count, count - further))

    def prefill_rows(
        self, most: int, decodes: tuple[int, float], usual: tuple[float, float], wanted: int, every: int, prompts: int
    ) -> int:
        """Rows of prompts, at most `most`, beside decoding rows (their number and context). `wanted` rows could be had now,
        `every` with those in flight, of so many prompts: each step gets an equal part of them, and one with fewer decoding rows
        than `usual` gets more: as many as take no longer."""
        if wanted <= 0 or most <= 0:
            return 0
        part = ceil(every / max(1, min(self.depth, prompts)))
        limit = self.seconds(usual[0] + part, usual[1])
        low, high = min(most, part if decodes[0] <= usual[0] else 1), most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(decodes[0] + middle, decodes[1]) <= limit:
                low = middle
            else:
                high = middle - 1
        return low


def pipeline_of(manifest: Manifest) -> Pipeline | None:
    """That of a plan with stages; None for any other."""
    if not manifest.stages:
        return None
    stages = [StepModel(performance_of(manifest, stage)) for stage in manifest.stages]

    def seconds(rows: float, context: float) -> float:
        return max(stage.seconds(StepWork(rows, context)) for stage in stages)

    return Pipeline(len(stages), seconds)
