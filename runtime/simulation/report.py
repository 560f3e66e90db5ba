"""What a run of traffic gave, simulated or measured, in figures with stable names (docs/simulation.md)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..benchmark.statistics import Summary, ratio
from .timeline import Timeline
from .turns import TurnRecord

SCHEMA = "tokenspeed-traffic-1"
CURVE_POINTS = 101


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """Turns of one priority or tenant, or all. Latencies are of finished turns, tokens of those and of failed ones.

    A turn's TPOT is (last token - first token) / (tokens - 1); inter-token times are all gaps between its tokens; a turn's time
    is from arrival to last token. Input tokens count cached ones.
    """

    name: str
    turns: int
    refused: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    hit_rate: float
    ttft_seconds: Summary
    tpot_seconds: Summary
    inter_token_seconds: Summary
    turn_seconds: Summary
    tokens_per_second_per_user: float
    tokens_per_minute_per_accelerator: float
    output_tokens_per_minute_per_accelerator: float


class CacheReport(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens: what prompts asked the prefix cache for at first admission, and what it had, on the device and on the host; what
    was computed again after preemption; what went to the host tier, and what came back, for whatever reason."""

    queried_tokens: int
    hit_tokens: int
    hit_rate: float
    device_hit_rate: float
    host_hit_rate: float
    recomputed_tokens: int
    offloaded_tokens: int
    reloaded_tokens: int
    device_blocks: int
    host_blocks: int
    block_tokens: int
    evicted_units: int


class MachineReport(msgspec.Struct, frozen=True, kw_only=True):
    """`busy_share`: time in which a step ran; `speed_of_light_share`: roofline time of the work done; both of the makespan, the
    mean of all accelerators."""

    accelerators: int
    steps: int
    preemptions: int
    busy_share: float
    speed_of_light_share: float


class TrafficReport(msgspec.Struct, frozen=True, kw_only=True):
    """`curves`: for each latency the values at 0, 1, ... 100 % of the turns (or gaps), of all classes together.

    What a client cannot know of a server is None or empty in a measured report.
    """

    schema: str
    kind: str
    plan: dict[str, str]
    traffic: dict[str, str | int | float]
    policy: dict[str, int | float | bool | None]
    settings: dict[str, int | float | bool]
    makespan_seconds: float
    all: ClassReport
    priorities: tuple[ClassReport, ...]
    tenants: tuple[ClassReport, ...]
    cache: CacheReport | None
    machine: MachineReport | None
    curves: dict[str, tuple[float, ...]]
    timeline: Timeline


def class_report(name: str, records: Sequence[TurnRecord], seconds: float, accelerators: int) -> ClassReport:
    """`seconds` is the time that the rates are of: the whole run's."""
    times = latencies(records)
    kept = [record for record in records if record.result != "refused"]
    prompts, outputs = sum(record.prompt_tokens for record in kept), sum(record.output_tokens for record in kept)
    cached = sum(record.cached_tokens for record in kept)
    minutes = seconds / 60 * accelerators
    tpot = summary_of(times["tpot_seconds"])
    return ClassReport(
        name=name,
        turns=len(records),
        refused=len(records) - len(kept),
        failed=sum(record.result == "failed" for record in records),
        input_tokens=prompts,
        cached_tokens=cached,
        output_tokens=outputs,
        hit_rate=ratio(cached, prompts),
        ttft_seconds=summary_of(times["ttft_seconds"]),
        tpot_seconds=tpot,
        inter_token_seconds=summary_of(times["inter_token_seconds"]),
        turn_seconds=summary_of(times["turn_seconds"]),
        tokens_per_second_per_user=ratio(1, tpot.mean),
        tokens_per_minute_per_accelerator=ratio(prompts + outputs, minutes),
        output_tokens_per_minute_per_accelerator=ratio(outputs, minutes),
    )


def classes_by(
    key: Callable[[TurnRecord], Hashable], records: Sequence[TurnRecord], seconds: float, accelerators: int
) -> tuple[ClassReport, ...]:
    """One report for each value of `key`, in order; none where all turns are of one."""
    groups: dict[Hashable, list[TurnRecord]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    if len(groups) < 2:
        return ()
    names = sorted(groups, key=lambda value: (isinstance(value, str), value))
    return tuple(class_report(str(name), groups[name], seconds, accelerators) for name in names)


def latencies(records: Iterable[TurnRecord]) -> dict[str, NDArray[np.float64]]:
    """Every finished turn's TTFT, TPOT (of two tokens or more) and time, and every gap between tokens."""
    done = [record for record in records if record.result == "finished" and record.token_seconds]
    several = [record for record in done if record.output_tokens > 1]
    return {
        "ttft_seconds": np.array([record.first_token_seconds for record in done]),
        "tpot_seconds": np.array([_tpot(record) for record in several]),
        "inter_token_seconds": _gaps(several),
        "turn_seconds": np.array([record.turn_seconds for record in done]),
    }


def curve(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Values at 0, 1, ... 100 % of the sample; empty where there is none."""
    if not len(values):
        return ()
    return tuple(np.quantile(values, np.linspace(0, 1, CURVE_POINTS)).tolist())


def summary_of(values: NDArray[np.float64]) -> Summary:
    """As `benchmark.statistics.summarise`, of large samples."""
    if not len(values):
        return Summary(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    p50, p90, p99 = np.quantile(values, (0.5, 0.9, 0.99)).tolist()
    return Summary(len(values), float(values.mean()), float(values.min()), p50, p90, p99, float(values.max()))


def _tpot(record: TurnRecord) -> float:
    times = record.token_seconds
    return (times[-1] - times[0]) / (len(times) - 1)


def _gaps(records: Sequence[TurnRecord]) -> NDArray[np.float64]:
    if not records:
        return np.empty(0)
    lengths = np.array([record.output_tokens for record in records])
    times = np.fromiter(chain.from_iterable(record.token_seconds for record in records), np.float64, int(lengths.sum()))
    return np.delete(np.diff(times), np.cumsum(lengths)[:-1] - 1)
