"""Latency of the executor alone: first token of a prompt, and time per output token by batch. No scheduler, no HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import msgspec

from ...plans.reader import Plan
from ..executor import PlanExecutor, load_executor
from ..scheduling.step import StepBatch
from .environment import Environment, environment
from .fixed_steps import StepMaker, admit_greedy
from .function_times import FunctionTime, timed_functions
from .machine_rates import MachineRates, better, measure_rates
from .roofline import Bound, StepWork, bound, decode_work, predicted_seconds, prompt_work
from .statistics import Summary, ratio, summarise

_WARM_UP_STEPS = 3
_PROMPT = "prompt"

Say = Callable[[str], None]


@dataclass(frozen=True)
class LatencyOptions:
    """`context` is how many tokens of KV a decode step reads; None: the prompt's."""

    weights: str | None
    threads: int | None
    batches: tuple[int, ...]
    context: int | None
    steps: int
    prompt_tokens: int
    prompts: int
    breakdown: bool


class Breakdown(msgspec.Struct, frozen=True):
    """Seconds of one step: by part, as the executor counts them; by function, in a pass of its own that timing slows down."""

    parts: dict[str, float]
    functions: list[FunctionTime]


class Point(msgspec.Struct, frozen=True):
    """One measurement. `rows` and `context_tokens` are a decode step's batch and context, or a prompt's tokens twice.

    `seconds` are TTFT for the prompt, TPOT for a batch. `predicted_seconds` is the plan's prediction for this very work.
    """

    kind: str
    rows: int
    context_tokens: int
    seconds: Summary
    tokens_per_second: float
    bound: Bound
    speed_of_light: float
    predicted_seconds: float
    measured_over_predicted: float
    breakdown: Breakdown | None = None


class LatencyReport(msgspec.Struct, frozen=True):
    model: str
    target: str
    dtype: str
    environment: Environment
    rates: MachineRates
    prompt: Point
    decode: list[Point]


@dataclass(frozen=True)
class _Case:
    """`runs` lists of steps; the time of a list is one sample."""

    kind: str
    rows: int
    context: int
    work: list[StepWork]
    runs: Callable[[int], Iterable[list[StepBatch]]]
    samples: int


def measure_latency(plan: Plan, options: LatencyOptions, say: Say) -> LatencyReport:
    """Raises TokenspeedError when the plan cannot be loaded or cannot run such steps."""
    cases = _cases(plan, options)
    executor = load_executor(plan, options.weights, options.threads, lambda phase: say(f"loaded {phase}"))
    threads = executor.threads
    surroundings = environment(threads)
    try:
        admit_greedy(executor, max(options.batches, default=1))
        say("measuring this machine's rates")
        rates = measure_rates(_rate_type(plan))
        samples = [_timed(executor, case, say) for case in cases]
        say("measuring this machine's rates again")
        rates = better(rates, measure_rates(_rate_type(plan)))
    finally:
        executor.close()
    functions = _function_times(plan, options, cases, say) if options.breakdown else {}
    points = [
        _point(plan, case, seconds, rates, Breakdown(parts, functions[case.kind, case.rows]) if options.breakdown else None)
        for case, (seconds, parts) in zip(cases, samples, strict=True)
    ]
    model = plan.manifest.model
    return LatencyReport(model.name, plan.manifest.target.name, model.dtype, surroundings, rates, points[0], points[1:])


def _rate_type(plan: Plan) -> str:
    return "bf16" if plan.manifest.model.dtype == "bf16" else "f32"


def _cases(plan: Plan, options: LatencyOptions) -> list[_Case]:
    """Also makes each case's last step once, so that what the plan cannot do is refused before anything is loaded."""
    maker = StepMaker(plan.manifest)
    prompt, chunk = options.prompt_tokens, plan.manifest.schedule.prefill_chunk
    context = prompt if options.context is None else options.context
    steps = options.steps + _WARM_UP_STEPS

    def prompts(count: int) -> Iterable[list[StepBatch]]:
        return (list(maker.prompt(prompt)) for _ in range(count))

    def decodes(batch: int) -> Callable[[int], Iterable[list[StepBatch]]]:
        return lambda count: ([step] for step in maker.decode(batch, context, count))

    cases = [_Case(_PROMPT, prompt, prompt, prompt_work(prompt, chunk), prompts, options.prompts)]
    for batch in options.batches:
        work = decode_work(batch, context + _WARM_UP_STEPS + (options.steps - 1) / 2)
        cases.append(_Case("decode", batch, context, work, decodes(batch), options.steps))
        next(iter(maker.decode(batch, context, steps)))
    next(iter(maker.prompt(prompt)))
    return cases


def _timed(executor: PlanExecutor, case: _Case, say: Say) -> tuple[list[float], dict[str, float]]:
    """Seconds of each sample, and the executor's own breakdown of them (seconds per step)."""
    before: dict[str, float] = {}
    seconds = _run(executor, case, lambda: before.update(_parts(executor)), say)
    steps = len(case.work) * len(seconds)
    return seconds, {name: (value - before[name]) / steps for name, value in _parts(executor).items()}


def _run(executor: PlanExecutor, case: _Case, warmed_up: Callable[[], None], say: Say) -> list[float]:
    """Seconds of each sample; `warmed_up` is called before the first that counts."""
    warm_up = 1 if case.kind == _PROMPT else _WARM_UP_STEPS
    samples: list[float] = []
    for number, batches in enumerate(case.runs(case.samples + warm_up)):
        if number == warm_up:
            warmed_up()
            samples = []
        if number % 16 == 0:
            say(f"{case.kind}, {case.rows} rows at {case.context} tokens: {number} of {case.samples + warm_up}")
        start = time.perf_counter()
        for batch in batches:
            executor.run(batch)
        samples.append(time.perf_counter() - start)
    return samples


def _parts(executor: PlanExecutor) -> dict[str, float]:
    return {name: value for name, value in asdict(executor.breakdown).items() if name != "steps"}


def _function_times(
    plan: Plan, options: LatencyOptions, cases: list[_Case], say: Say
) -> dict[tuple[str, int], list[FunctionTime]]:
    """A second executor, whose launches are timed."""
    found = {}
    with timed_functions() as clock:
        executor = load_executor(plan, options.weights, options.threads, lambda phase: say(f"loaded {phase} to time functions"))
        try:
            admit_greedy(executor, max(options.batches, default=1))
            for case in cases:
                seconds = _run(executor, case, clock.reset, say)
                found[case.kind, case.rows] = clock.per_step(len(case.work) * len(seconds))
        finally:
            executor.close()
    return found


def _point(plan: Plan, case: _Case, seconds: list[float], rates: MachineRates, breakdown: Breakdown | None) -> Point:
    summary, performance = summarise(seconds), plan.manifest.performance
    limit = bound(performance, case.work, rates, summary.p50)
    predicted = predicted_seconds(performance, case.work)
    return Point(
        kind=case.kind,
        rows=case.rows,
        context_tokens=case.context,
        seconds=summary,
        tokens_per_second=ratio(case.rows, summary.p50),
        bound=limit,
        speed_of_light=limit.speed_of_light,
        predicted_seconds=predicted,
        measured_over_predicted=ratio(summary.p50, predicted),
        breakdown=breakdown,
    )
