"""`tokenspeed-plan simulate`: options in, figures, JSON and a page out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from ...plans.command import run_command
from ...plans.errors import UsageError
from ...plans.reader import Plan

if TYPE_CHECKING:
    from ...plans.schema import Manifest
    from .report import TrafficReport

_POSITIVE = click.FloatRange(0, min_open=True)
DEFAULT_AGENTS = 8
DEFAULT_HOST_SECONDS = 0.5e-3
DEFAULT_HOST_TOKEN_SECONDS = 0.07e-6
"""Host time of a step, and of a token of a sequence that begins or ends: docs/simulation.md says where they were measured."""

_STANDARD_OUTPUT = "-"


@click.command()
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--trace", required=True, help="Trace file, folder of them, or synthetic:sessions=N,seed=N.")
@click.option("--trace-format", help="What the trace is: claude-code, mooncake, azure, texts. [default: by name and first line]")
@click.option("--agents", type=click.IntRange(1, 100_000), help=f"Sessions at a time, a closed loop. [default: {DEFAULT_AGENTS}]")
@click.option("--open-loop", is_flag=True, help="Turns arrive when the trace had them, but none before the answer before it.")
@click.option("--time-scale", default=1.0, show_default=True, type=float, help="Gaps and arrival times, so many times as long.")
@click.option("--session-rate", type=_POSITIVE, help="Open loop: sessions/s that begin. [default: the trace's times]")
@click.option("--most-gap", type=click.FloatRange(0), help="Seconds that a client waits at most, before scaling.")
@click.option("--context-scale", default=1.0, show_default=True, type=_POSITIVE, help="Times all lengths, outputs included.")
@click.option("--max-turns", type=click.IntRange(1), help="Turns of a session, at most.")
@click.option("--sessions", type=click.IntRange(1, 1_000_000), help="Sessions; of a short trace they come again as others.")
@click.option("--host-kv", metavar="BYTES", help="Host memory of each rank for KV blocks, e.g. 128GiB. [default: the plan's]")
@click.option("--without", multiple=True, metavar="FEATURE", help="A feature of the policy to leave out (docs/scheduling.md).")
@click.option("--plain", is_flag=True, help="First come first served, least recently used evicted first: no feature at all.")
@click.option("--rates", type=click.Path(path_type=Path), help="JSON file of rates: compute, bandwidth, dispatch, host_link.")
@click.option("--host-seconds", default=DEFAULT_HOST_SECONDS, show_default=True, type=float, help="Host time of each step.")
@click.option(
    "--host-token-seconds", default=DEFAULT_HOST_TOKEN_SECONDS, show_default=True, type=float,
    help="Host time for each token of a sequence that is admitted, and again when it ends.",
)  # fmt: skip
@click.option("--request-seconds", default=0.0, show_default=True, type=float, help="From a client's sending to the queue.")
@click.option("--request-token-seconds", default=0.0, show_default=True, type=float, help="More for each token of the prompt.")
@click.option("--no-overlap", is_flag=True, help="Schedule a step after the one ahead of it is done.")
@click.option("--closing", is_flag=True, help="Clients say when a session has no further turn.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - for standard output.")
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the report as a page with charts.")
@run_command
def simulate(
    plan: Path,
    trace: str,
    trace_format: str | None,
    agents: int | None,
    open_loop: bool,
    time_scale: float,
    session_rate: float | None,
    most_gap: float | None,
    context_scale: float,
    max_turns: int | None,
    sessions: int | None,
    host_kv: str | None,
    without: tuple[str, ...],
    plain: bool,
    rates: Path | None,
    host_seconds: float,
    host_token_seconds: float,
    request_seconds: float,
    request_token_seconds: float,
    no_overlap: bool,
    closing: bool,
    json_file: str | None,
    html_file: Path | None,
) -> None:
    """Play a trace against a plan in virtual time: its own scheduler and KV manager, steps as long as its cost model says.

    A session ends before the first turn that does not fit the plan's context. Definitions and the report's fields:
    docs/simulation.md.
    """
    from ..scheduling.ablation import POLICIES
    from ..scheduling.ablation import without as leave_out
    from ..traffic.reading import read_trace
    from ..traffic.shaping import Shape, shaped
    from .simulate import Scenario
    from .simulate import simulate as run
    from .virtual_engine import EngineSettings

    if open_loop and agents is not None:
        raise UsageError("a loop is open or closed", where="--open-loop", expected="one of --agents and --open-loop", got="both")
    given = {"--host-seconds": host_seconds, "--host-token-seconds": host_token_seconds, "--request-seconds": request_seconds}
    given |= {"--request-token-seconds": request_token_seconds, "--time-scale": time_scale}
    for name, value in given.items():
        if not 0 <= value < float("inf"):
            raise UsageError("this time is not usable", where=name, expected="a number of 0 or more", got=str(value))
    policy = leave_out(POLICIES["plain" if plain else "agentic"], without)
    with Plan.open(plan) as opened:
        manifest, plan_id = opened.manifest, opened.plan_id
    manifest = _machine(manifest, rates, host_kv)
    shape = Shape(
        sessions=sessions, max_turns=max_turns, context_scale=context_scale, most_gap=most_gap, session_rate=session_rate
    )
    played = shaped(read_trace(trace, trace_format), shape, _longest(manifest))
    engine = EngineSettings(
        host_seconds,
        request_seconds,
        not no_overlap,
        closing=closing,
        host_token_seconds=host_token_seconds,
        request_token_seconds=request_token_seconds,
    )
    loop = None if open_loop else agents or DEFAULT_AGENTS
    report = run(manifest, played, Scenario(loop, time_scale, policy, engine, {"id": plan_id, "path": str(plan)}))
    write_report(report, json_file, html_file)


def _machine(manifest: Manifest, rates: Path | None, host_kv: str | None) -> Manifest:
    """The plan with what the options change of its machine."""
    from ...plans.units import parse_bytes
    from .simulate import with_host_tier, with_rates

    if rates is not None:
        try:
            figures = msgspec.json.decode(rates.read_bytes(), type=dict[str, float])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UsageError(
                "the rates cannot be read", where=str(rates), expected='JSON such as {"compute": 1e12}', got=str(error)
            ) from None
        manifest = with_rates(manifest, figures, str(rates))
    return manifest if host_kv is None else with_host_tier(manifest, parse_bytes(host_kv, "--host-kv"))


def _longest(manifest: Manifest) -> int:
    """Tokens of the longest turn that the plan takes."""
    return min(manifest.model.max_context, manifest.kv.blocks * manifest.kv.block_tokens)


def write_report(report: TrafficReport, json_file: str | None, html_file: Path | None) -> None:
    """Where it was asked for; as a table unless it went to standard output as JSON ("-")."""
    from .page import page
    from .table import print_report

    if html_file is not None:
        html_file.write_text(page(report), encoding="utf-8")
    text = msgspec.json.format(msgspec.json.encode(report), indent=1)
    if json_file == _STANDARD_OUTPUT:
        sys.stdout.write(text.decode() + "\n")
        return
    if json_file is not None:
        Path(json_file).write_bytes(text + b"\n")
    print_report(report)
