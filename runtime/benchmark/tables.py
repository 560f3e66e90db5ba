"""Reports as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table

from ...plans.units import format_bytes, format_count, format_seconds, printable
from .statistics import Summary

if TYPE_CHECKING:
    from .environment import Environment
    from .latency import Breakdown, LatencyReport, Point
    from .serve import ServeReport
    from .startup import StartupReport
    from .throughput import ThroughputReport


def latency(report: LatencyReport) -> Iterator[RenderableType]:
    yield _heading(report.model, report.target, report.dtype, report.environment)
    rates = report.rates
    yield (
        f"this machine, measured in the same run: reads {rates.read_bandwidth / 1e9:.1f} GB/s, multiplies {rates.dtype} matrices "
        f"at {rates.gemm_rate / 1e9:.0f} GFLOP/s ({rates.gemm_kernel})"
    )
    table = Table(
        "", "rows", "context", "p50", "p90", "min", "tokens/s", "of bandwidth", "of compute", "predicted", "measured/predicted",
        title="TTFT of a prompt, TPOT of a decode batch (executor alone)", title_justify="left",
    )  # fmt: skip
    for point in (report.prompt, *report.decode):
        table.add_row(*_point(point))
    yield table
    for point in (report.prompt, *report.decode):
        if point.breakdown is not None:
            yield from _breakdown(point, point.breakdown)


def _point(point: Point) -> list[str]:
    seconds = point.seconds
    return [
        point.kind,
        str(point.rows),
        str(point.context_tokens),
        *(format_seconds(value) for value in (seconds.p50, seconds.p90, seconds.minimum)),
        f"{point.tokens_per_second:.1f}",
        f"{point.bound.bandwidth_share:.0%}",
        f"{point.bound.compute_share:.0%}",
        format_seconds(point.predicted_seconds),
        f"{point.measured_over_predicted:.2f}",
    ]


def _breakdown(point: Point, breakdown: Breakdown) -> Iterator[RenderableType]:
    total = sum(breakdown.parts.values())
    parts = ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in breakdown.parts.items())
    yield f"{point.kind}, {point.rows} rows: one step takes {format_seconds(total)}: {parts}"
    table = Table("function", "launches", "seconds", "share", title="timed in a pass of its own", title_justify="left")
    whole = sum(item.seconds for item in breakdown.functions)
    for item in breakdown.functions:
        share = f"{item.seconds / whole:.1%}" if whole else ""
        table.add_row(item.function, f"{item.launches:g}", format_seconds(item.seconds), share)
    yield table


def throughput(report: ThroughputReport) -> Iterator[RenderableType]:
    yield _heading(report.model, report.target, report.dtype, report.environment)
    yield (
        f"{report.requests} requests, {report.concurrency} at a time, {report.prompt_tokens} prompt and {report.output_tokens} "
        f"output tokens each (engine loop, scheduler and executor; no HTTP)"
    )
    table = _figures()
    table.add_row("output tokens/s", f"{report.output_tokens_per_second:.1f}")
    table.add_row("input tokens/s, cached ones included", f"{report.input_tokens_per_second:.1f}")
    table.add_row("TPS/user", f"{report.tokens_per_second_per_user:.1f}")
    table.add_row("TPM/accelerator, input + output", format_count(report.tokens_per_minute_per_accelerator))
    table.add_row("TPM/accelerator, output alone", format_count(report.output_tokens_per_minute_per_accelerator))
    table.add_row("hit rate, tokens", f"{report.hit_rate:.1%}")
    table.add_row("preemptions (tokens computed again)", f"{report.preemptions} ({report.recomputed_tokens})")
    table.add_row("steps (rows a step)", f"{report.steps} ({report.rows_per_step:.1f})")
    table.add_row("scheduler, one step", format_seconds(report.scheduler_seconds_per_step))
    table.add_row("wall time in scheduler, in executor", f"{report.scheduler_share:.1%}, {report.executor_share:.1%}")
    yield table
    yield _summaries({"TTFT": report.ttft_seconds, "TPOT": report.tpot_seconds, "request": report.request_seconds})
    compared = Table("plan's prediction for this traffic", "predicted", "measured", "measured/predicted")
    for name, item in report.predictions.items():
        compared.add_row(name, f"{item.predicted:.4g}", f"{item.measured:.4g}", f"{item.measured_over_predicted:.2f}")
    yield compared


def startup(report: StartupReport) -> Iterator[RenderableType]:
    yield _machine(report.environment)
    how = "after plan and weights were dropped from the page cache" if report.evicted else "page cache as it was"
    yield f"first start, {how}: first token after {format_seconds(report.first.first_token_seconds)}"
    yield _summaries({"warm: to first token": report.first_token_seconds, "of it not weights": report.beside_weights_seconds})
    table = Table("phase (the engine's run beside the others)", "first", *(f"warm {n + 1}" for n in range(len(report.warm))))
    starts = [report.first, *report.warm]
    for phase in dict.fromkeys(name for start in starts for name in start.phases):
        table.add_row(phase, *(f"{start.phases[phase]:.2f} s" if phase in start.phases else "" for start in starts))
    yield table


def serve(report: ServeReport) -> Iterator[RenderableType]:
    arrivals = f"{report.rate:g} requests/s arriving, at most {report.concurrency} at once" if report.rate else (
        f"{report.concurrency} at a time"
    )  # fmt: skip
    yield printable(f"{report.model} at {report.url}: {report.requests} requests, {arrivals}, {report.wall_seconds:.1f} s")
    table = _figures()
    table.add_row("succeeded, failed, unfinished", f"{report.succeeded}, {report.failed}, {report.unfinished}")
    table.add_row("requests/s", f"{report.requests_per_second:.2f}")
    table.add_row("output tokens/s", f"{report.output_tokens_per_second:.1f}")
    table.add_row("input tokens/s", f"{report.input_tokens_per_second:.1f}")
    table.add_row("TPS/user", f"{report.tokens_per_second_per_user:.1f}")
    table.add_row("hit rate, tokens", f"{report.hit_rate:.1%}")
    table.add_row("tokens counted by", report.tokens_counted_by)
    yield table
    yield _summaries(
        {
            "TTFT": report.ttft_seconds,
            "TPOT": report.tpot_seconds,
            "inter-token": report.inter_token_seconds,
            "request": report.request_seconds,
        }
    )
    for error in report.errors:
        yield printable(f"error: {error}")


def _heading(model: str, target: str, dtype: str, environment: Environment) -> str:
    return printable(f"{model} for {target}, {dtype}\n") + _machine(environment)


def _machine(environment: Environment) -> str:
    threads = f", {environment.threads} threads" if environment.threads else ""
    text = (
        f"{environment.date}, {environment.cores} cores of {environment.cpu}, {format_bytes(environment.memory_bytes)}{threads}, "
        f"torch {environment.torch}, load {environment.load}"
    )
    busy = environment.load > 0.5
    return printable(text + (" (something else was running: figures are not clean)" if busy else ""))


def _figures() -> Table:
    return Table(show_header=False)


def _summaries(summaries: dict[str, Summary]) -> Table:
    table = Table("", "p50", "p90", "p99", "min", "max", "mean", "of")
    for name, item in summaries.items():
        figures = (item.p50, item.p90, item.p99, item.minimum, item.maximum, item.mean)
        table.add_row(name, *(format_seconds(value) if item.count else "" for value in figures), str(item.count))
    return table
