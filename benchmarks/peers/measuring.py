"""Arms of one model and precision in turns: for each piece of work of a round a probe of the machine, then every arm."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

from tokenspeed.plans.errors import TokenspeedError

from .arm_process import ArmFailed, ArmProcess, start
from .arms import Arm
from .report import DISTURBED, ArmReport, Figure, Probe, Sample
from .work import Shape, Work

_PROBE = Path(__file__).resolve().parent / "servers" / "probe_server.py"
_FIRST_TOKEN_PROMPT = 32
LONG_PREFILL = 2048  # prompts from here on run in the first round only

Say = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """How much is measured. Rounds end early when `deadline` (time.monotonic) has passed; the first is always whole."""

    threads: int
    rounds: int
    steps: int
    starts: int
    deadline: float


@dataclass
class _Running:
    arm: Arm
    process: ArmProcess
    loaded: dict[str, Any]
    start_seconds: list[float]
    samples: dict[Work, list[Sample]]
    failed: str | None = None


class MachineProbe:
    """A process of its own, so that its threads are at rest while arms run."""

    def __init__(self, threads: int, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = ArmProcess([sys.executable, str(_PROBE), str(threads)], log)

    def __call__(self) -> Probe:
        return Probe(**self._process.ask(do="probe"))

    def close(self) -> None:
        self._process.close()


def compare(
    arms: Sequence[Arm], works: Sequence[Work], shape: Shape, effort: Effort, probe: MachineProbe, logs: Path, say: Say
) -> list[ArmReport]:
    """Every arm's report, in order; an arm that fails keeps what it had and its error."""
    running: list[_Running] = []
    reports: dict[Arm, ArmReport] = {}
    try:
        for arm in arms:
            say(f"{arm.peer} {arm.precision}: starting")
            try:
                running.append(_start(arm, effort, logs))
            except TokenspeedError as error:
                reports[arm] = ArmReport.absent(arm.peer, arm.precision, _reason(error))
        for number in range(effort.rounds):
            for work in works:
                if number and (time.monotonic() > effort.deadline or (work.kind == "prefill" and work.size >= LONG_PREFILL)):
                    continue
                say(f"round {number + 1} of {effort.rounds}: {work.name}")
                _turn(running, work, effort, probe(), say)
        for item in running:
            reports[item.arm] = _report(item, shape)
    finally:
        for item in running:
            item.process.close()
    return [reports[arm] for arm in arms]


def _start(arm: Arm, effort: Effort, logs: Path) -> _Running:
    load = {"path": str(arm.model), "threads": effort.threads, "options": {}}
    log = logs / f"{arm.peer}-{arm.precision}.log"
    seconds: list[float] = []
    for _ in range(effort.starts - 1):
        process, _loaded, spent = start(arm.command, log, load, _FIRST_TOKEN_PROMPT)
        process.close()
        seconds.append(spent)
    process, loaded, spent = start(arm.command, log, load, _FIRST_TOKEN_PROMPT)
    return _Running(arm, process, loaded, [*seconds, spent], {})


def _turn(running: Sequence[_Running], work: Work, effort: Effort, machine: Probe, say: Say) -> None:
    for item in running:
        if item.failed is not None:
            continue
        before, began = item.process.waited_seconds(), time.perf_counter()
        try:
            if work.kind == "decode":
                answer = item.process.ask(do="decode", batch=work.size, context=work.context, steps=effort.steps)
                seconds = statistics.median(answer["seconds"])
            else:
                seconds = item.process.ask(do="prefill", tokens=work.size)["seconds"]
        except ArmFailed as error:
            item.failed = f"{work.name}: {_reason(error)}"
            say(f"{item.arm.peer} {item.arm.precision}: {item.failed}")
            continue
        waited = (item.process.waited_seconds() - before) / (effort.threads * (time.perf_counter() - began))
        item.samples.setdefault(work, []).append(Sample(seconds, max(0.0, waited), machine))


def _report(item: _Running, shape: Shape) -> ArmReport:
    weight_bytes, element_bytes = item.loaded["weight_bytes"], item.loaded["kv_element_bytes"]
    figures = {}
    for work, samples in item.samples.items():
        if work.kind == "decode":
            least = [work.least_bytes(shape, weight_bytes, element_bytes) / sample.machine.read_bandwidth for sample in samples]
        else:
            least = [work.flops(shape) / sample.machine.gemm_rate for sample in samples]
        clean = [sample.waited <= DISTURBED for sample in samples]
        counted = clean if any(clean) else [True] * len(samples)
        shares = [bound / sample.seconds for bound, sample in zip(least, samples, strict=True)]
        rates = [work.size / sample.seconds for sample in samples]
        figures[work.name] = Figure(
            statistics.median(compress(rates, counted)), max(rates), statistics.median(compress(shares, counted)), samples
        )
    return ArmReport(
        peer=item.arm.peer,
        precision=item.arm.precision,
        versions=item.loaded["versions"],
        note=item.loaded["note"],
        weight_bytes=weight_bytes,
        kv_element_bytes=element_bytes,
        first_token_seconds=min(item.start_seconds),
        peak_memory_bytes=item.process.peak_memory_bytes(),
        figures=figures,
        failed=item.failed,
    )


def _reason(error: TokenspeedError) -> str:
    return " ".join(part for part in (error.what, error.got) if part)
