"""Arms in a table, measured and predicted, and by how much the predictions were off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from tokenspeed.runtime.benchmark.statistics import Summary, ratio
from tokenspeed.runtime.simulation.report import TrafficReport

from .predicted import Constants
from .served import Served

COLUMNS = (
    "arm", "", "turns", "hit", "makespan s", "of the first", "TTFT p50 / p90 / p99 s", "TPOT p50 / p90 / p99 ms", "turn p90 s",
    "of the first", "reloaded", "offloaded", "prompt tokens computed", "preempted: times, tokens", "busy", "of the roofline",
)  # fmt: skip
_PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class Line:
    """One run in figures with the table's names; tokens are counts."""

    kind: str
    turns: int
    unfinished: int
    failed: int
    hit_rate: float
    makespan_seconds: float
    ttft: Summary
    tpot: Summary
    turn: Summary
    reloaded: float
    offloaded: float
    computed: float
    preemptions: float
    recomputed: float
    busy: float
    speed_of_light: float


@dataclass(frozen=True)
class Result:
    """Of one arm; `served` is None where nothing was run."""

    label: str
    predicted: TrafficReport
    constants: Constants
    served: Served | None = None

    def lines(self) -> list[Line]:
        return [*([_measured(self.served)] if self.served else []), _predicted(self.predicted)]

    def errors(self) -> dict[str, float]:
        """(predicted - measured) / measured."""
        if self.served is None:
            return {}
        measured, predicted = self.lines()
        found = {"makespan": _error(predicted.makespan_seconds, measured.makespan_seconds)}
        for name in ("ttft", "tpot", "turn"):
            for percentile in _PERCENTILES:
                values = [getattr(getattr(line, name), percentile) for line in (predicted, measured)]
                found[f"{name} {percentile}"] = _error(*values)
        return found

    def data(self) -> dict[str, Any]:
        """For JSON."""
        data: dict[str, Any] = {"predicted": msgspec.to_builtins(self.predicted), "constants": vars(self.constants)}
        if self.served is not None:
            data |= {"measured": msgspec.to_builtins(self.served.report), "counters": self.served.used, "errors": self.errors()}
            data |= {"ready_seconds": self.served.ready_seconds, "warm_up_seconds": self.served.warm_up_seconds}
        return data


def table(results: Mapping[str, Result]) -> str:
    """Markdown: two lines for each arm; shares are of the first arm's line of the same kind."""
    rows = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    first = {line.kind: line for line in next(iter(results.values())).lines()}
    for result in results.values():
        rows += [f"| {' | '.join([result.label, *_cells(line, first[line.kind])])} |" for line in result.lines()]
    return "\n".join(rows)


def error_table(results: Mapping[str, Result]) -> str:
    """Markdown: predicted beside measured; empty where nothing was measured."""
    found = {result.label: result.errors() for result in results.values() if result.served}
    if not found:
        return ""
    names = list(next(iter(found.values())))
    rows = [f"| predicted / measured - 1 | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    rows += [f"| {label} | {' | '.join(f'{errors[name]:+.0%}' for name in names)} |" for label, errors in found.items()]
    return "\n".join(rows)


def _measured(served: Served) -> Line:
    report, used = served.report, served.used
    return Line(
        kind="measured",
        hit_rate=served.hit_rate,
        reloaded=used.get("reloaded_tokens", 0.0),
        offloaded=used.get("offloaded_tokens", 0.0),
        computed=used.get("prefix_cache_queries", 0.0) - used.get("prefix_cache_hits", 0.0),
        preemptions=used.get("num_preemptions", 0.0),
        recomputed=used.get("recomputed_tokens", 0.0),
        busy=served.busy_share,
        speed_of_light=served.speed_of_light_share,
        **_of_clients(report),
    )


def _predicted(report: TrafficReport) -> Line:
    cache, machine = report.cache, report.machine
    assert cache is not None and machine is not None
    return Line(
        kind="predicted",
        hit_rate=cache.hit_rate,
        reloaded=cache.reloaded_tokens,
        offloaded=cache.offloaded_tokens,
        computed=cache.queried_tokens - cache.hit_tokens,
        preemptions=machine.preemptions,
        recomputed=cache.recomputed_tokens,
        busy=machine.busy_share,
        speed_of_light=machine.speed_of_light_share,
        **_of_clients(report),
    )


def _of_clients(report: TrafficReport) -> dict[str, Any]:
    turns = report.all
    return {
        "turns": turns.turns,
        "unfinished": int(report.traffic.get("unfinished", 0)),
        "failed": turns.failed + turns.refused,
        "makespan_seconds": report.makespan_seconds,
        "ttft": turns.ttft_seconds,
        "tpot": turns.tpot_seconds,
        "turn": turns.turn_seconds,
    }


def _cells(line: Line, first: Line) -> list[str]:
    turns = f"{line.turns}" + (f" of {line.turns + line.unfinished}" if line.unfinished else "")
    return [
        line.kind,
        turns + (f", {line.failed} failed" if line.failed else ""),
        f"{line.hit_rate:.3f}",
        ("over " if line.unfinished else "") + f"{line.makespan_seconds:.1f}",
        f"{ratio(line.makespan_seconds, first.makespan_seconds):.2f}",
        _three(line.ttft, 1, "{:.3g}"),
        _three(line.tpot, 1e3, "{:.1f}"),
        f"{line.turn.p90:.2f}",
        f"{ratio(line.turn.p90, first.turn.p90):.2f}",
        _tokens(line.reloaded),
        _tokens(line.offloaded),
        _tokens(line.computed),
        f"{line.preemptions:.0f}, {_tokens(line.recomputed)}",
        f"{line.busy:.0%}",
        f"{line.speed_of_light:.0%}",
    ]


def _three(summary: Summary, scale: float, shape: str) -> str:
    return " / ".join(shape.format(getattr(summary, name) * scale) for name in _PERCENTILES)


def _tokens(count: float) -> str:
    return f"{count / 1e6:.2f} M" if count >= 1e5 else f"{count / 1e3:.1f} k"


def _error(predicted: float, measured: float) -> float:
    return predicted / measured - 1 if measured else 0.0
