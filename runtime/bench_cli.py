"""tokenspeed-bench: measures a plan on this machine, or a server over HTTP. Definitions: docs/performance.md."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from ..plans.command import run_command
from ..plans.errors import UsageError
from ..plans.reader import Plan
from ..plans.units import printable
from .host import check_host
from .openmp import bound_spinning

if TYPE_CHECKING:
    from rich.console import RenderableType

PAGE_WIDTH = 160
MAX_COUNT = 1_000_000
DEFAULT_BATCHES = (1, 4, 16)
Count = click.IntRange(1, MAX_COUNT)

_plan_argument = click.argument("plan", type=click.Path(path_type=Path))
_weights_option = click.option("--weights", metavar="DIR|FILE|dummy", help="Where the weights are. [default: in the plan]")
_threads_option = click.option("--threads", type=click.IntRange(1, 1024), help="Threads to compute with. [default: all cores]")
_key_option = click.option(
    "--api-key", envvar="TOKENSPEED_API_KEY", metavar="KEY", help="Better in TOKENSPEED_API_KEY: other users see command lines."
)
_POSITIVE = click.FloatRange(0, min_open=True)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors are JSON too.")


class Counts(click.ParamType):
    """`1,4,16`"""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        parts = str(value).split(",")
        if not all(part.strip().isdecimal() and 0 < int(part) <= MAX_COUNT for part in parts):
            self.fail(f"{value!r} is no list of positive numbers such as 1,4,16", param, ctx)
        return tuple(dict.fromkeys(int(part) for part in parts))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure a plan on this machine, or a server over HTTP."""
    bound_spinning()  # before torch is loaded


@main.command()
@_plan_argument
@click.option("--batch", "batches", type=Counts(), help="Decode batch sizes. [default: 1,4,16, as far as the plan goes]")
@click.option("--context", type=Count, help="Tokens of KV that decode steps read. [default: --prompt-tokens]")
@click.option("--steps", default=64, show_default=True, type=Count, help="Decode steps measured for each batch.")
@click.option("--prompt-tokens", default=512, show_default=True, type=Count, help="Length of the prompt.")
@click.option("--prompts", default=5, show_default=True, type=Count, help="Prompts measured.")
@click.option("--breakdown", is_flag=True, help="Also show where the time of a step goes, by part and by function.")
@_weights_option
@_threads_option
@_json_option
@run_command
def latency(
    plan: Path,
    batches: tuple[int, ...] | None,
    context: int | None,
    steps: int,
    prompt_tokens: int,
    prompts: int,
    breakdown: bool,
    weights: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time to first token and per output token of PLAN's executor; shares of what this machine could do; predictions."""
    with _opened(plan) as opened, _progress() as say:
        from .benchmark import latency as measure

        most = opened.manifest.schedule.max_decode_rows
        batches = batches or tuple(size for size in DEFAULT_BATCHES if size <= most)
        options = measure.LatencyOptions(weights, threads, batches, context, steps, prompt_tokens, prompts, breakdown)
        report = measure.measure_latency(opened, options, say)
    from .benchmark import tables

    _print(report, tables.latency, as_json)


@main.command()
@_plan_argument
@click.option("--requests", default=16, show_default=True, type=Count, help="Requests measured.")
@click.option("--concurrency", type=Count, help="Requests at a time. [default: the plan's traffic]")
@click.option("--prompt-tokens", type=Count, help="Prompt length. [default: the plan's traffic]")
@click.option("--output-tokens", type=Count, help="Tokens generated for each request. [default: the plan's traffic]")
@click.option(
    "--cached-fraction", type=click.FloatRange(0, 1), help="Part of each prompt that all share. [default: the plan's traffic]"
)
@click.option("--overlap/--no-overlap", default=True, show_default=True, help="Schedule each step while the one before it runs.")
@_weights_option
@_threads_option
@_json_option
@run_command
def throughput(
    plan: Path,
    requests: int,
    concurrency: int | None,
    prompt_tokens: int | None,
    output_tokens: int | None,
    cached_fraction: float | None,
    overlap: bool,
    weights: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Tokens per second of PLAN's engine, scheduler included, with requests in a closed loop."""
    with _opened(plan) as opened, _progress() as say:
        from .benchmark import throughput as measure

        traffic = opened.manifest.schedule.traffic
        options = measure.ThroughputOptions(
            weights=weights,
            threads=threads,
            requests=requests,
            concurrency=concurrency or max(1, round(traffic["concurrency"])),
            prompt_tokens=prompt_tokens or max(1, round(traffic["prompt_tokens"])),
            output_tokens=output_tokens or max(1, round(traffic["output_tokens"])),
            cached_fraction=traffic["cached_fraction"] if cached_fraction is None else cached_fraction,
            overlap=overlap,
        )
        report = measure.measure_throughput(opened, plan, options, say)
    from .benchmark import tables

    _print(report, tables.throughput, as_json)


@main.command()
@_plan_argument
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, 100), help="Warm starts measured.")
@click.option("--prompt", default="The capital of France is", show_default=True, help="What is completed by one token.")
@click.option("--evict/--no-evict", default=True, show_default=True, help="Drop plan and weights from the page cache first.")
@_weights_option
@_threads_option
@_json_option
@run_command
def startup(plan: Path, repeats: int, prompt: str, evict: bool, weights: str | None, threads: int | None, as_json: bool) -> None:
    """From the start of `tokenspeed-run PLAN --prompt ...` to its first token, as a process of its own."""
    with _opened(plan), _progress() as say:
        from .benchmark import startup as measure

        report = measure.measure_startup(measure.StartupOptions(plan, weights, threads, prompt, repeats, evict), say)
    from .benchmark import tables

    _print(report, tables.startup, as_json)


@main.command()
@click.option("--url", required=True, help="The server, e.g. http://127.0.0.1:8000")
@click.option("--model", help="Model name to ask for. [default: the first of GET /v1/models]")
@click.option("--api", default="completions", show_default=True, type=click.Choice(["completions", "chat"]))
@click.option("--requests", default=32, show_default=True, type=Count)
@click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 4096), help="Requests at a time, at most.")
@click.option("--prompt-tokens", default=512, show_default=True, type=Count, help="Tokens (completions) or words (chat).")
@click.option("--output-tokens", default=64, show_default=True, type=Count)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Requests/s that arrive. [default: a closed loop]")
@click.option("--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Generate all tokens in any case.")
@click.option("--request-timeout", default=300.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds.")
@click.option("--time-limit", default=600.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds for all of it.")
@_key_option
@_json_option
@run_command
def serve(
    url: str,
    model: str | None,
    api: Any,
    requests: int,
    concurrency: int,
    prompt_tokens: int,
    output_tokens: int,
    rate: float | None,
    ignore_eos: bool,
    request_timeout: float,
    time_limit: float,
    api_key: str | None,
    as_json: bool,
) -> None:
    """Latency and throughput of any OpenAI-compatible server, over HTTP with streamed answers."""
    from .benchmark import serve as measure
    from .benchmark import tables
    from .benchmark.http_stream import Server
    from .benchmark.random_requests import ServeOptions

    options = ServeOptions(
        server=Server.parse(url, api_key),
        model=model,
        api=api,
        requests=requests,
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        rate=rate,
        ignore_eos=ignore_eos,
        request_seconds=request_timeout,
        total_seconds=time_limit,
    )
    with _progress() as say:
        report = measure.measure_serve(options, url, say)
    _print(report, tables.serve, as_json)
    if not report.succeeded:
        raise UsageError(
            "No request succeeded.",
            where=url,
            got="; ".join(report.errors) or "no answer in time",
            fix="check the model name and the server's log, or give more --time-limit",
        )


@main.command()
@click.option("--trace", required=True, help="A trace (docs/benchmarking.md), a folder of them, or synthetic:sessions=N,seed=N")
@click.option("--trace-format", help="Of the trace. [default: as its files look]")
@click.option("--url", required=True, help="The server, e.g. http://127.0.0.1:8000")
@click.option("--server", "server_kind", help="tokenspeed, vllm, sglang, llamacpp, openai. [default: as GET /v1/models says]")
@click.option("--model", help="Model name to ask for. [default: the first of GET /v1/models]")
@click.option("--api", default="completions", show_default=True, type=click.Choice(["completions", "chat"]))
@click.option("--text", is_flag=True, help="Send completions' prompts as text, also to a server that takes tokens.")
@click.option("--agents", default=8, show_default=True, type=click.IntRange(1, 65536), help="Sessions at a time: a closed loop.")
@click.option("--open-loop", is_flag=True, help="Turns at the trace's own times instead.")
@click.option("--session-rate", type=_POSITIVE, help="Open loop: sessions/s that begin. [default: the trace's times]")
@click.option("--time-scale", default=1.0, show_default=True, type=click.FloatRange(0), help="Times the clients' pauses.")
@click.option("--most-gap", type=click.FloatRange(0), help="Seconds that a client waits at most, before scaling.")
@click.option("--context-scale", default=1.0, show_default=True, type=_POSITIVE, help="Times all lengths, outputs included.")
@click.option("--max-context", type=Count, help="End sessions before turns of more tokens. [default: the model's]")
@click.option("--max-turns", type=Count, help="Turns of a session, at most.")
@click.option("--sessions", type=Count, help="Sessions; more than there are come again with other tokens. [default: the trace's]")
@click.option("--seed", type=click.IntRange(0, 2**31), help="Other tokens for each seed, against caches of earlier runs.")
@click.option("--answers", default="given", show_default=True, type=click.Choice(["given", "traced"]), help="In later prompts.")
@click.option("--priority", default=0, show_default=True, type=click.IntRange(-(2**31), 2**31 - 1), help="Lower is earlier.")
@click.option("--hints/--no-hints", default=True, show_default=True, help="Tell ends of turns and sessions, where known.")
@click.option("--session-header", default="", metavar="NAME", help="A header for the session's id, for routers.")
@click.option("--field", "fields", multiple=True, metavar="NAME=JSON", help="A field more in each request's body.")
@click.option("--token-ids", type=(Count, Count), default=(300, 700), show_default=True, help="First id and count, for prompts.")
@click.option("--accelerators", default=1, show_default=True, type=Count, help="Of the server, for rates per accelerator.")
@click.option("--request-timeout", default=600.0, show_default=True, type=click.FloatRange(0.1, 86400), help="Seconds.")
@click.option(
    "--time-limit", default=3600.0, show_default=True, type=click.FloatRange(0.1, 864000), help="Seconds for all of it."
)
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output.")
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the report as a page with charts.")
@_key_option
@run_command
def replay(json_file: str | None, html_file: Path | None, **chosen: Any) -> None:
    """Play a trace of sessions to any OpenAI-compatible server: turns, the clients' pauses, growing prompts."""
    from .benchmark import replay as measure
    from .benchmark import replay_options
    from .simulation.command import write_report

    trace, options = replay_options.prepare(**chosen)
    with _progress() as say:
        report = measure.measure_replay(trace, options, chosen["url"], say)
    write_report(report, json_file, html_file)
    for error in report.errors:
        click.echo(f"error: {printable(error)}", err=True)
    if not report.all.ttft_seconds.count:
        raise UsageError(
            "No turn was answered.",
            where=chosen["url"],
            got="; ".join(report.errors) or "no answer in time",
            fix="check the model name and the server's log, or give more --time-limit",
        )


@contextmanager
def _opened(path: Path) -> Iterator[Plan]:
    """A plan that this machine can run; refused before torch is imported."""
    with Plan.open(path) as plan:
        check_host(plan.manifest)
        yield plan


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Where a measurement says what it does: a line that is replaced, when somebody watches."""
    if not sys.stderr.isatty():
        yield lambda _text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(text)


def _print(report: msgspec.Struct, pages: Callable[[Any], Iterable[RenderableType]], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else PAGE_WIDTH, markup=False, highlight=False)
    with console.capture() as capture:  # printed at once: rich would end the process itself when a pipe breaks
        for page in pages(report):
            console.print(page)
            console.print()
    click.echo(capture.get(), nl=False)
