"""What a step costs in the scheduler: microseconds of schedule() + complete() while `running` requests decode and others wait.

    python benchmarks/scheduler_cost.py [--running 1,16,64,256] [--waiting 0,128,5000] [--waiting-tokens 20000]
                                        [--behind slots|pool] [--steps 400] [--overlap] [--peer DIR] [--json FILE]

Arms: `agentic` (the default policy: sessions, tenants, a clock that ticks, a cost model), `plain` (first come, first served)
and `peer`, the C++ scheduler of the PyPI wheel `tokenspeed-scheduler`, where it is installed or unpacked in DIR:

    pip install --no-deps --target DIR tokenspeed-scheduler

Every arm fills its slots, prefills, then times steady decode steps; block boundaries and sealing fall within them as they do in
service. The queue waits because all slots are taken, or (`--behind pool`, 64 steps) because no prompt of it fits the KV pool
(beside 256 running that takes longer prompts than 20,000 tokens): ours alone, since the peer, without a snapshot pool, aborts
running requests there. The arms of a case take turns, `--rounds` times; figures are medians over steps.
CPU time stands beside wall time, for machines that are shared. Ours has the step ready as arrays and takes tokens as one. Of the
peer, `calls` are next_execution_plan() and advance() alone; `with results` also makes the events that advance() takes and reads
request ids and block tables, which an executor needs. The ratio is to its calls alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from itertools import islice, product
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from peers.cpp_scheduler import PeerScheduler
from tokenspeed.plans.schema import CostRow, Performance, Rate
from tokenspeed.runtime.benchmark.environment import environment
from tokenspeed.runtime.scheduling.costs import StepCosts
from tokenspeed.runtime.scheduling.kv import KvManager
from tokenspeed.runtime.scheduling.policy import AGENTIC, PLAIN, Policy
from tokenspeed.runtime.scheduling.request import Request, SchedulerLimits
from tokenspeed.runtime.scheduling.scheduler import Scheduler

BLOCK_TOKENS, PREFILL_CHUNK, ANSWER = 64, 2048, 5
STEP_SECONDS = 0.01
_FREE_SLOTS = 16
GOALS = {16: 50.0, 256: 100.0}
"""Microseconds of a step, by running requests."""


@dataclass(frozen=True)
class Case:
    """`prompt` and `waiting_prompt` in tokens; `steps` are timed. `behind_pool`: slots are free, blocks are not."""

    running: int
    waiting: int
    prompt: int
    waiting_prompt: int
    steps: int
    behind_pool: bool = False

    @property
    def slots(self) -> int:
        return self.running + (_FREE_SLOTS if self.behind_pool else 0)

    @property
    def output(self) -> int:
        """Tokens of an answer: it must not end before all run and the steps are timed."""
        return self.steps + 4 * self.running * self.prompt // PREFILL_CHUNK + BLOCK_TOKENS

    @property
    def context(self) -> int:
        return max(self.prompt, self.waiting_prompt) + self.output + 2 * BLOCK_TOKENS

    @property
    def blocks(self) -> int:
        """For the running, or one of the others. Behind the pool: for what the running will have by the last step, when those
        that came first have had an answer's token for each step in which others were prefilled."""
        running, waiting = ((prompt + self.output) // BLOCK_TOKENS + 3 for prompt in (self.prompt, self.waiting_prompt))
        if not self.behind_pool:
            return max(self.running * running, waiting)
        prefilling = self.running * self.prompt // PREFILL_CHUNK
        ahead = (prefilling * (self.running - number) // self.running for number in range(self.running))
        used = sum((self.prompt + BLOCK_TOKENS + steps + self.steps) // BLOCK_TOKENS + 2 for steps in ahead)
        return max(used, waiting + 2)

    def prompts(self) -> Iterator[NDArray[np.int32]]:
        """No two begin alike."""
        random = np.random.default_rng(0)
        body = random.integers(3, 30_000, self.waiting_prompt + self.prompt + BLOCK_TOKENS, dtype=np.int32)
        for number in range(self.running + self.waiting):
            length = self.prompt + number % BLOCK_TOKENS if number < self.running else self.waiting_prompt
            tokens = body[:length].copy()
            tokens[0] = 30_000 + number
            yield tokens


class Arm(Protocol):
    def fill(self) -> None:
        """Submit and prefill what runs, then submit what waits."""
        ...

    def step(self) -> dict[str, tuple[float, float]]:
        """One decode step: (wall, CPU) seconds of each part that is timed."""
        ...


class OurScheduler:
    """With `overlap` step N+1 is scheduled before step N is complete."""

    def __init__(self, case: Case, policy: Policy, costs: StepCosts | None, overlap: bool) -> None:
        limits = SchedulerLimits(
            max_rows=case.slots + PREFILL_CHUNK,
            max_decode_rows=case.slots,
            max_sequences=case.slots,
            prefill_chunk=PREFILL_CHUNK,
            max_waiting=case.running + case.waiting,
            max_context=case.context,
        )
        kv = KvManager(case.blocks, BLOCK_TOKENS, BLOCK_TOKENS, "benchmark")
        self._scheduler = Scheduler(limits, kv, policy=policy, costs=costs)
        self._case, self._overlap, self._now = case, overlap, 0.0
        self._pending = None

    def fill(self) -> None:
        scheduler, prompts = self._scheduler, enumerate(self._case.prompts())
        scheduler.tick(self._now)
        for number, tokens in islice(prompts, self._case.running):
            self._submit(number, tokens)
        while (batch := scheduler.schedule()) is not None:
            scheduler.complete(batch.step_id, np.full(len(batch.logit_rows), ANSWER, dtype=np.int32))
            self._tick()
            if batch.decode_rows == self._case.running:
                break
        for number, tokens in prompts:
            self._submit(number, tokens)
        if self._overlap:
            self._pending = scheduler.schedule()

    def _submit(self, number: int, tokens: NDArray[np.int32]) -> None:
        request = Request(
            f"request-{number}",
            tokens,
            self._case.output,
            stop_tokens=frozenset({1, 2}),
            session_id=f"session-{number}",
            tenant=f"tenant-{number % 4}",
        )
        self._scheduler.submit(request)

    def step(self) -> dict[str, tuple[float, float]]:
        scheduler, oldest = self._scheduler, self._pending
        tokens = np.full(self._case.running, ANSWER, dtype=np.int32)
        start, cpu = time.perf_counter(), time.thread_time()
        self._tick()
        batch = scheduler.schedule()
        done = oldest if self._overlap else batch
        if done is None or batch is None or batch.rows != self._case.running:
            raise SystemExit("a step is not that of the running alone: give fewer --steps, or longer --waiting-tokens")
        scheduler.complete(done.step_id, tokens)
        spent = time.perf_counter() - start, time.thread_time() - cpu
        self._pending = batch
        return {"calls": spent}

    def _tick(self) -> None:
        self._now += STEP_SECONDS
        self._scheduler.tick(self._now)


def cost_model() -> StepCosts:
    """About what an 8B model of bf16 has on one H200; the numbers matter little here, that they are asked for does."""
    rates = {"compute": (6.6e14, "FLOP/s"), "bandwidth": (4.0e12, "B/s"), "dispatch": (5e-6, "s"), "host_link": (5e10, "B/s")}
    performance = Performance(
        rates={name: Rate(value=value, unit=unit, source="benchmark", basis="nominal") for name, (value, unit) in rates.items()},
        step_costs=tuple(
            CostRow(rows=rows, flops=1.5e10 * rows, weight_bytes=1.6e10, activation_bytes=4e5 * rows, instructions=300)
            for rows in (1, 8, 64, 256, 512, 2304)
        ),
        attention_flops_per_token_pair=524_288.0,
        kv_bytes_per_token=131_072.0,
        predictions={},
    )
    return StepCosts([performance], [1, 8, 64, 256, 512, 2304], PREFILL_CHUNK, 5e10)


def peer_module(folder: Path | None) -> ModuleType | str:
    """The peer, or why there is none."""
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        return import_module("tokenspeed_scheduler")
    except ImportError as error:
        return f"not installed ({error})"


def arms_of(case: Case, overlap: bool, peer: ModuleType | str) -> dict[str, Callable[[], Arm]]:
    arms: dict[str, Callable[[], Arm]] = {
        "agentic": lambda: OurScheduler(case, AGENTIC, cost_model(), overlap),
        "plain": lambda: OurScheduler(case, PLAIN, None, overlap),
    }
    if isinstance(peer, ModuleType):
        arms["peer"] = lambda: PeerScheduler(
            peer, case.prompts, case.running, case.blocks, BLOCK_TOKENS, PREFILL_CHUNK, case.output
        )
    return arms


def measure(case: Case, makers: dict[str, Callable[[], Arm]], rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds by arm: deciles 1, 5 and 9 of wall and CPU time of each part."""
    arms = {name: make() for name, make in makers.items()}
    for arm in arms.values():
        arm.fill()
    gc.collect()
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {} for name in arms}
    turn = max(1, case.steps // rounds)
    for _ in range(rounds):
        for name, arm in arms.items():
            for _ in range(turn):
                for part, spent in arm.step().items():
                    found[name].setdefault(part, []).append(spent)
    return {name: _figures(parts) for name, parts in found.items()}


def _figures(parts: dict[str, list[tuple[float, float]]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for part, samples in parts.items():
        prefix = "" if part == "calls" else f"{part} "
        for kind, values in zip(("wall", "cpu"), zip(*samples, strict=True), strict=True):
            deciles = statistics.quantiles(values, n=10)
            figures[f"{prefix}{kind} p10"] = round(1e6 * deciles[0], 1)
            figures[f"{prefix}{kind} p50"] = round(1e6 * deciles[4], 1)
            figures[f"{prefix}{kind} p90"] = round(1e6 * deciles[-1], 1)
    return figures


_WIDTHS = (7, 7, 16, 16, 16, 14, 12, 12)
_HEADINGS = ("running", "waiting", "agentic (CPU)", "plain (CPU)", "peer calls (CPU)", "with results", "peer/agentic", "goal")


def table(results: list[dict[str, Any]], peer: ModuleType | str) -> str:
    rows = [_HEADINGS, *(_cells(row["running"], row["waiting"], row["arms"]) for row in results)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, _WIDTHS, strict=True)) for row in rows]
    lines.append("median microseconds of a step; the goal and the ratio are of CPU time")
    return "\n".join(lines + ([f"peer: {peer}"] if isinstance(peer, str) else []))


def _cells(running: int, waiting: int, arms: dict[str, dict[str, float]]) -> tuple[str, ...]:
    ours, plain, peer = arms["agentic"], arms["plain"], arms.get("peer")
    limit = GOALS.get(running)
    goal = "" if limit is None else f"{limit:.0f} {'met' if ours['cpu p50'] <= limit else 'missed'}"
    shown = [f"{item['wall p50']:.0f} ({item['cpu p50']:.0f})" if item else "-" for item in (ours, plain, peer)]
    others = ("-", "-") if peer is None else (f"{peer['with results wall p50']:.0f}", f"{peer['cpu p50'] / ours['cpu p50']:.1f}")
    return (str(running), str(waiting), *shown, *others, goal)


def counts(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=counts, default=[1, 16, 64, 256])
    parser.add_argument("--waiting", type=counts, default=[0, 128, 5000])
    parser.add_argument("--prompt", type=int, default=2000, help="tokens of the running")
    parser.add_argument("--waiting-tokens", type=int, default=20_000)
    parser.add_argument("--behind", choices=("slots", "pool"), default="slots", help="what the queue waits for")
    parser.add_argument("--steps", type=int, help="[default: 400; 64 behind the pool]")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--peer", type=Path, help="folder with tokenspeed_scheduler")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peer = peer_module(options.peer) if options.behind == "slots" else "not measured behind the pool"
    results: list[dict[str, Any]] = []
    for waiting, running in product(options.waiting, options.running):
        steps = options.steps or (64 if options.behind == "pool" else 400)
        case = Case(running, waiting, options.prompt, options.waiting_tokens, steps, options.behind == "pool")
        print(f"{running} running, {waiting} waiting", file=sys.stderr, flush=True)
        arms = measure(case, arms_of(case, options.overlap, peer), options.rounds)
        results.append({"running": running, "waiting": waiting, "arms": arms})
    print(table(results, peer))
    if options.json is not None:
        machine = msgspec.to_builtins(environment())
        content = {"machine": machine, "overlap": options.overlap, "behind": options.behind, "results": results}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
