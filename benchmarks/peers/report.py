"""The report of cpu_peers.py, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from rich.console import RenderableType
from rich.table import Table
from tokenspeed.plans.units import format_bytes, format_seconds, printable
from tokenspeed.runtime.benchmark.environment import Environment

DISTURBED = 0.05


class Probe(msgspec.Struct, frozen=True):
    """The machine at one moment: bytes per second, floating-point operations per second, and which GEMM that was."""

    read_bandwidth: float
    gemm_rate: float
    gemm: str


class Sample(msgspec.Struct, frozen=True):
    """One round: `seconds` of a prompt, or the median of a round's decode steps. `waited` is the share of its threads' time
    that they spent ready to run without a core; `machine` was probed just before."""

    seconds: float
    waited: float
    machine: Probe


class Figure(msgspec.Struct, frozen=True):
    """Medians over the rounds: tokens per second, and the share of the bound, each round against its own probe. Rounds
    that waited for a core are left out where there are others."""

    tokens_per_second: float
    best_tokens_per_second: float
    share: float
    samples: list[Sample]


class ArmReport(msgspec.Struct, frozen=True):
    """`figures` by work ("decode 4": 4 sequences; "prefill 512": tokens). `failed` says why something is missing."""

    peer: str
    precision: str
    versions: dict[str, str]
    note: str
    weight_bytes: int
    kv_element_bytes: int
    first_token_seconds: float | None
    peak_memory_bytes: int | None
    figures: dict[str, Figure]
    failed: str | None = None

    @classmethod
    def absent(cls, peer: str, precision: str, reason: str) -> ArmReport:
        return cls(peer, precision, {}, "", 0, 0, None, None, {}, reason)


class ModelReport(msgspec.Struct, frozen=True):
    model: str
    context: int
    arms: list[ArmReport]


class PeersReport(msgspec.Struct, frozen=True):
    """`command_start_seconds`: `tokenspeed-run PLAN --prompt` from its process start to its first byte of text, by model."""

    environment: Environment
    threads: int
    rounds: int
    models: list[ModelReport]
    command_start_seconds: dict[str, float]


def tables(report: PeersReport) -> Iterator[RenderableType]:
    surroundings = report.environment
    yield printable(
        f"{surroundings.date}, {surroundings.cores} cores of {surroundings.cpu} ({', '.join(surroundings.features)}), "
        f"{report.threads} threads, load before the run {surroundings.load}"
    )
    for model in report.models:
        yield from _model(model)
    for name, seconds in report.command_start_seconds.items():
        yield f"tokenspeed-run on {name}, process start to first text: {format_seconds(seconds)}"
    yield from _peers(report)


def _model(model: ModelReport) -> Iterator[RenderableType]:
    works = list(dict.fromkeys(name for arm in model.arms for name in arm.figures))
    title = f"{model.model}: tokens/s, median of the rounds (share of the bound); decode at context {model.context}"
    table = Table("", "", *works, "first token", "peak memory", title=title, title_justify="left")
    precision = None
    for arm in model.arms:
        if precision not in (None, arm.precision):
            table.add_section()
        precision = arm.precision
        if arm.first_token_seconds is not None:
            cells = [_cell(arm.figures.get(work)) for work in works]
            memory = "" if arm.peak_memory_bytes is None else format_bytes(arm.peak_memory_bytes)
            table.add_row(arm.peer, arm.precision, *cells, format_seconds(arm.first_token_seconds), memory)
    yield table
    yield from (printable(f"missing: {arm.peer} {arm.precision}: {arm.failed}") for arm in model.arms if arm.failed is not None)
    yield from _machine([sample for arm in model.arms for figure in arm.figures.values() for sample in figure.samples])


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    disturbed = all(sample.waited > DISTURBED for sample in figure.samples)
    return f"{figure.tokens_per_second:.1f} ({figure.share:.0%}){'*' if disturbed else ''}"


def _machine(samples: Sequence[Sample]) -> Iterator[str]:
    if not samples:
        return
    reads = [sample.machine.read_bandwidth / 1e9 for sample in samples]
    gemms = [sample.machine.gemm_rate / 1e9 for sample in samples]
    kinds = ", ".join(sorted({sample.machine.gemm for sample in samples}))
    yield (
        f"probed before each measurement: reads {min(reads):.1f} to {max(reads):.1f} GB/s; "
        f"[512 x 4096] x [4096 x 4096] {min(gemms):.0f} to {max(gemms):.0f} GFLOP/s ({kinds})"
    )
    waited = [sample.waited for sample in samples if sample.waited > DISTURBED]
    if waited:
        yield (
            f"in {len(waited)} of {len(samples)} measurements an arm's threads waited for a core for more than {DISTURBED:.0%} "
            f"of the time (at worst {max(waited):.0%}); * marks figures that have no other"
        )


def _peers(report: PeersReport) -> Iterator[str]:
    told = {
        f"{arm.peer} {arm.precision}: {', '.join(f'{name} {version}' for name, version in arm.versions.items())}; {arm.note}"
        for model in report.models
        for arm in model.arms
        if arm.versions
    }
    yield from map(printable, sorted(told))
