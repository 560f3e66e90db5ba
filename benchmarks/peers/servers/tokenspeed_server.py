"""This project: the executor on a plan, as `tokenspeed-bench latency` drives it. No scheduler, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from line_server import WARM_UP_STEPS, serve
from tokenspeed.plans.perf_model import step_cost
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy
from tokenspeed.runtime.executor import load_executor
from tokenspeed.runtime.scheduling.step import StepBatch


class Tokenspeed:
    """`path` is a plan that holds its weights."""

    def load(self, path: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        plan = Plan.open(Path(path))
        manifest = plan.manifest
        self._executor = load_executor(plan, None, threads, lambda _phase: None)
        admit_greedy(self._executor, manifest.schedule.max_decode_rows)
        self._steps = StepMaker(manifest)
        return {
            "weight_bytes": step_cost(manifest.performance, 1).weight_bytes,
            "kv_element_bytes": 4 if manifest.kv.groups[0].dtype == "f32" else 2,
            "versions": {"tokenspeed-compile": metadata.version("tokenspeed-compile")},
            "note": f"plan for {manifest.target.name}, prefill in chunks of {manifest.schedule.prefill_chunk}",
        }

    def decode(self, batch: int, context: int, steps: int) -> list[float]:
        return self._timed(self._steps.decode(batch, context, steps + WARM_UP_STEPS))[WARM_UP_STEPS:]

    def prefill(self, tokens: int) -> float:
        return sum(self._timed(self._steps.prompt(tokens)))

    def _timed(self, batches: Iterable[StepBatch]) -> list[float]:
        seconds = []
        for batch in list(batches):
            start = time.perf_counter()
            self._executor.run(batch)
            seconds.append(time.perf_counter() - start)
        return seconds


if __name__ == "__main__":
    serve(Tokenspeed())
