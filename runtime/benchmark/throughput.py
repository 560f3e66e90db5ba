"""Throughput of engine loop, scheduler and executor in one process: a closed loop of requests, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from ...plans.errors import TokenspeedError, UsageError
from ...plans.integrity import ranks
from ...plans.perf_model import predict
from ...plans.reader import Plan
from ...plans.schema import Manifest
from ..engine import EngineLoop
from ..executor_interface import Executor, Started, StepResult
from ..protocol import SamplingParameters, Submit, packed
from ..scheduling.kv import manager_of
from ..scheduling.prefix import PrefixChain
from ..scheduling.request import Outcome, Request, SchedulerLimits
from ..scheduling.scheduler import Scheduler
from ..scheduling.step import IntArray, StepBatch
from .all_ranks import open_all_ranks
from .closed_loop import ClosedLoop, RequestTimes
from .environment import Environment, environment
from .latency import Say
from .statistics import Summary, ratio, summarise

_WARM_UP_TOKENS = 8


class ThroughputFailed(TokenspeedError):
    """A request of the benchmark did not end as it should."""


@dataclass(frozen=True)
class ThroughputOptions:
    """`cached_fraction` of each prompt is common to all requests and computed before the measurement; the rest is its own."""

    weights: str | None
    threads: int | None
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    cached_fraction: float
    overlap: bool = True


class Prediction(msgspec.Struct, frozen=True):
    predicted: float
    measured: float
    measured_over_predicted: float


class ThroughputReport(msgspec.Struct, frozen=True):
    """Definitions: docs/performance.md. Input tokens count whole prompts; `computed_input_tokens` those not from the cache."""

    model: str
    target: str
    dtype: str
    environment: Environment
    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    wall_seconds: float
    output_tokens_per_second: float
    input_tokens_per_second: float
    computed_input_tokens: int
    tokens_per_second_per_user: float
    tokens_per_minute_per_accelerator: float
    output_tokens_per_minute_per_accelerator: float
    hit_rate: float
    preemptions: int
    recomputed_tokens: int
    steps: int
    rows_per_step: float
    scheduler_seconds_per_step: float
    scheduler_share: float
    executor_share: float
    ttft_seconds: Summary
    tpot_seconds: Summary
    request_seconds: Summary
    predictions: dict[str, Prediction]


class TimedScheduler(Scheduler):
    """Adds up the time spent in it."""

    seconds = 0.0

    def submit(self, request: Request, chain: PrefixChain | None = None) -> None:
        start = time.perf_counter()
        super().submit(request, chain)
        self.seconds += time.perf_counter() - start

    def schedule(self) -> StepBatch | None:
        start = time.perf_counter()
        batch = super().schedule()
        self.seconds += time.perf_counter() - start
        return batch

    def complete(self, step_id: int, tokens: Mapping[str, int] | Sequence[int] | NDArray[np.int32]) -> list[Outcome]:
        start = time.perf_counter()
        outcomes = super().complete(step_id, tokens)
        self.seconds += time.perf_counter() - start
        return outcomes


class TimedExecutor:
    """An `Executor` that adds up the rows of another's steps, and the time in which there was a step or more to run."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.seconds, self.rows = 0.0, 0
        self._begun: float | None = None
        self._counted = 0.0

    def check(self, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray) -> None:
        self._executor.check(sampling, end_tokens, prompt)

    def admit(
        self, slot: int, sampling: SamplingParameters, end_tokens: tuple[int, ...], prompt: IntArray, output: IntArray
    ) -> None:
        self._begun = self._begun or time.perf_counter()
        self._executor.admit(slot, sampling, end_tokens, prompt, output)

    def start(self, batch: StepBatch) -> Started:
        begun, self._begun = self._begun or time.perf_counter(), None
        self.rows += len(batch.token_ids)
        started = self._executor.start(batch)

        def result() -> StepResult:
            try:
                return started()
            finally:
                end = time.perf_counter()
                self.seconds += end - max(begun, self._counted)
                self._counted = end

        return result

    def close(self) -> None:
        self._executor.close()


def measure_throughput(plan: Plan, path: Path, options: ThroughputOptions, say: Say) -> ThroughputReport:
    """Raises TokenspeedError when the plan cannot be loaded, a request is too long for it, or a request fails."""
    _check(plan.manifest, options)
    executor = open_all_ranks(plan, path, options.weights, options.threads, lambda phase: say(f"loaded {phase}"))
    try:
        return run_closed_loop(plan.manifest, executor, options, say)
    finally:
        executor.close()


def run_closed_loop(manifest: Manifest, executor: Executor, options: ThroughputOptions, say: Say) -> ThroughputReport:
    """The measurement, with an executor that is loaded; the common prefix is computed, and sizes are met, in a round before."""
    surroundings = environment(torch.get_num_threads())
    timed = TimedExecutor(executor)
    kv = manager_of(manifest.kv)
    scheduler = TimedScheduler(SchedulerLimits.from_plan(manifest.schedule, manifest.model.max_context), kv)

    def serve(name: str, count: int, output_tokens: int) -> ClosedLoop:
        say(f"{name}: {count} requests, {options.concurrency} at a time")
        channel = ClosedLoop(_submits(name, manifest, options, count, output_tokens), options.concurrency)
        EngineLoop(scheduler, timed, channel, manifest.model.end_tokens, overlap=options.overlap).run()
        _check_served(channel, output_tokens)
        return channel

    serve("warm-up", options.concurrency, min(_WARM_UP_TOKENS, options.output_tokens))
    before, scheduled, executed, rows = scheduler.stats(), scheduler.seconds, timed.seconds, timed.rows
    start = time.perf_counter()
    requests = list(serve("measured", options.requests, options.output_tokens).requests.values())
    wall = time.perf_counter() - start
    after = scheduler.stats()
    steps = after.steps - before.steps
    queries, hits = after.prefix_queries - before.prefix_queries, after.prefix_hits - before.prefix_hits
    output, prompts = len(requests) * options.output_tokens, len(requests) * options.prompt_tokens
    accelerators = ranks(manifest)
    ttft, tpot = summarise([item.first_token for item in requests]), summarise(_per_token(requests))
    return ThroughputReport(
        model=manifest.model.name,
        target=manifest.target.name,
        dtype=manifest.model.dtype,
        environment=surroundings,
        requests=len(requests),
        concurrency=options.concurrency,
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        wall_seconds=wall,
        output_tokens_per_second=output / wall,
        input_tokens_per_second=prompts / wall,
        computed_input_tokens=prompts - hits,
        tokens_per_second_per_user=ratio(1.0, tpot.mean),
        tokens_per_minute_per_accelerator=60 * (output + prompts) / wall / accelerators,
        output_tokens_per_minute_per_accelerator=60 * output / wall / accelerators,
        hit_rate=ratio(hits, queries),
        preemptions=after.preemptions - before.preemptions,
        recomputed_tokens=after.recomputed_tokens - before.recomputed_tokens,
        steps=steps,
        rows_per_step=ratio(timed.rows - rows, steps),
        scheduler_seconds_per_step=ratio(scheduler.seconds - scheduled, steps),
        scheduler_share=(scheduler.seconds - scheduled) / wall,
        executor_share=(timed.seconds - executed) / wall,
        ttft_seconds=ttft,
        tpot_seconds=tpot,
        request_seconds=summarise([item.total for item in requests]),
        predictions=_predictions(manifest, options, ttft.mean, tpot.mean, output / wall),
    )


def _per_token(requests: list[RequestTimes]) -> list[float]:
    return [item.per_token for item in requests if len(item.tokens) > 1]


def _predictions(
    manifest: Manifest, options: ThroughputOptions, ttft: float, tpot: float, output_rate: float
) -> dict[str, Prediction]:
    traffic = {
        "prompt_tokens": float(options.prompt_tokens),
        "cached_fraction": options.cached_fraction,
        "output_tokens": float(options.output_tokens),
        "concurrency": float(options.concurrency),
    }
    predicted = predict(manifest.performance, manifest.schedule, traffic)
    measured = {"ttft_seconds": ttft, "tpot_seconds": tpot, "output_tokens_per_second": output_rate}
    return {name: Prediction(predicted[name], value, ratio(value, predicted[name])) for name, value in measured.items()}


def _submits(name: str, manifest: Manifest, options: ThroughputOptions, count: int, output_tokens: int) -> Iterator[Submit]:
    """Prompts of random tokens behind the common prefix; the same ones every time."""
    common = int(options.prompt_tokens * options.cached_fraction)
    prefix = _tokens(manifest, "common", common)
    sampling = SamplingParameters(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
    for number in range(count):
        request_id = f"{name}-{number}"
        prompt = (*prefix, *_tokens(manifest, request_id, options.prompt_tokens - common))
        yield Submit(request_id, packed(prompt), sampling)


def _tokens(manifest: Manifest, seed: str, count: int) -> tuple[int, ...]:
    random = np.random.default_rng(list(seed.encode()))
    return tuple(random.integers(0, manifest.model.vocabulary, count).tolist())


def _check(manifest: Manifest, options: ThroughputOptions) -> None:
    longest, tokens = manifest.model.max_context, options.prompt_tokens + options.output_tokens
    if tokens > longest:
        raise UsageError(
            "Prompt and output are longer than the plan's context.",
            where="--prompt-tokens, --output-tokens",
            expected=f"at most {longest} tokens together",
            got=str(tokens),
            fix="ask for less, or compile a plan with a larger --max-context",
        )


def _check_served(channel: ClosedLoop, output_tokens: int) -> None:
    wrong = [
        (name, item.error or f"{len(item.tokens)} tokens")
        for name, item in channel.requests.items()
        if item.error or not item.ended or len(item.tokens) != output_tokens
    ]
    if channel.failure or wrong:
        raise ThroughputFailed(
            "The engine did not serve all requests." if not channel.failure else "The engine failed.",
            where=", ".join(name for name, _ in wrong[:8]),
            expected=f"{output_tokens} tokens for each request",
            got=channel.failure or wrong[0][1],
            fix="ask for fewer or shorter requests, or check the plan: tokenspeed-plan verify PLAN",
        )
