"""What a step costs in the scheduler: microseconds of schedule() + complete(), all running requests decoding. Prints JSON.

    python benchmarks/scheduler_cost.py [--steps 500] [--prompt 2000]

Every case fills the slots, prefills, then times steady decode steps; block boundaries and sealing fall within them as they do
in service. Quartiles are over steps; CPU time stands beside wall time, for machines that are shared. `overlap` schedules step
N+1 before it completes step N.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time

import numpy as np
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler

BLOCK_TOKENS = 64


def filled_scheduler(running: int, waiting: int, prompt: int, steps: int) -> Scheduler:
    """A scheduler with `running` requests in decode and `waiting` behind them."""
    context = prompt + 2 * steps + 64
    blocks = running * (context // BLOCK_TOKENS + 2)
    limits = SchedulerLimits(running + 2048, running, running, 2048, waiting + running, context)
    scheduler = Scheduler(limits, KvManager(blocks, BLOCK_TOKENS, BLOCK_TOKENS, "benchmark"))
    random = np.random.default_rng(0)
    for number in range(running + waiting):
        tokens = random.integers(3, 1000, prompt + number % BLOCK_TOKENS, dtype=np.int32)
        scheduler.submit(Request(f"request-{number}", tokens, context, stop_tokens=frozenset({1, 2})))
    while (batch := scheduler.schedule()) is not None:
        scheduler.complete(batch.step_id, np.full(len(batch.logit_rows), 5, dtype=np.int32))
        if batch.decode_rows == running:
            break
    return scheduler


def step_seconds(scheduler: Scheduler, steps: int, overlap: bool) -> tuple[list[float], list[float]]:
    """Wall and CPU seconds of each of `steps` schedule + complete pairs."""
    wall, cpu, pending = [], [], scheduler.schedule() if overlap else None
    for _ in range(steps):
        start, cpu_start = time.perf_counter(), time.thread_time()
        batch = scheduler.schedule()
        oldest = pending if overlap else batch
        if oldest is None or batch is None:
            raise RuntimeError("the benchmark ran out of work")
        scheduler.complete(oldest.step_id, np.full(len(oldest.logit_rows), 5, dtype=np.int32))
        cpu.append(time.thread_time() - cpu_start)
        wall.append(time.perf_counter() - start)
        pending = batch
    return wall, cpu


def measure(running: int, waiting: int, prompt: int, steps: int, overlap: bool) -> dict[str, float | int | bool]:
    scheduler = filled_scheduler(running, waiting, prompt, steps)
    wall, cpu = step_seconds(scheduler, steps, overlap)
    low, median, high = (round(1e6 * value, 1) for value in statistics.quantiles(wall, n=4))
    case = {"running": running, "waiting": waiting, "overlap": overlap, "prompt_tokens": prompt}
    case |= {"microseconds_p25": low, "microseconds_p50": median, "microseconds_p75": high}
    return case | {"cpu_microseconds_p50": round(1e6 * statistics.median(cpu), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prompt", type=int, default=2000)
    options = parser.parse_args()
    cases = [(r, w, o) for o in (False, True) for r in (16, 64, 256) for w in (0, 5000)]
    results = [measure(r, w, options.prompt, options.steps, o) for r, w, o in cases]
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    json.dump({"machine": machine, "steps": options.steps, "results": results}, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
