"""Decoding and prefill of several plans of one model in turns, in one process on this machine's GPU.

    python benchmarks/gpu_turns.py PLAN PLAN... [--point BATCH:CONTEXT]... [--prompt TOKENS]... [--repeats 5]

All plans are loaded at once, with made-up weights, so the device must have room for them. In each repeat every plan has its turn,
in every other one backwards. Milliseconds: the median of all steps, and the least and the largest of the turns' medians.
Prints JSON lines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpu_peers import STEPS, WARM_STEPS, run_ahead
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.fixed_steps import StepMaker, admit_greedy
from tokenspeed.runtime.executor import PlanExecutor, load_executor


class Side:
    """A plan that is loaded."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with Plan.open(path) as plan:
            self.executor: PlanExecutor = load_executor(plan, "dummy", None, lambda _phase: None)
            self.maker = StepMaker(plan.manifest)
            admit_greedy(self.executor, plan.manifest.schedule.max_sequences)

    def decode(self, batch: int, context: int) -> list[float]:
        """Seconds of steps, without those that warm up."""
        return run_ahead(self.executor, list(self.maker.decode(batch, context, STEPS)))[WARM_STEPS:]

    def prompt(self, tokens: int) -> list[float]:
        """Seconds of one prompt."""
        start = time.perf_counter()
        run_ahead(self.executor, list(self.maker.prompt(tokens)))
        return [time.perf_counter() - start]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--point", action="append", default=[], help="BATCH:CONTEXT of decode steps")
    parser.add_argument("--prompt", action="append", default=[], type=int, help="tokens of a prompt")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    sides = [Side(path) for path in options.plans]
    for point in options.point:
        batch, context = map(int, point.split(":"))
        _compare(sides, options.repeats, f"decode {batch} x {context}", partial(Side.decode, batch=batch, context=context))
    for tokens in options.prompt:
        _compare(sides, options.repeats, f"prompt {tokens}", partial(Side.prompt, tokens=tokens))
    for side in sides:
        side.executor.close()


def _compare(sides: list[Side], repeats: int, what: str, run: Callable[[Side], list[float]]) -> None:
    found: dict[str, list[list[float]]] = {side.name: [] for side in sides}
    for turn in range(repeats + 1):
        for side in sides if turn % 2 else reversed(sides):
            seconds = run(side)
            if turn:  # the first warms up
                found[side.name].append(seconds)
    for name, turns in found.items():
        medians = sorted(statistics.median(turn) * 1e3 for turn in turns)
        median = statistics.median(second * 1e3 for turn in turns for second in turn)
        line = {"what": what, "plan": name, "median": round(median, 3), "turns": [round(medians[0], 3), round(medians[-1], 3)]}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
