"""What the scheduler's features buy on agents' traffic: a trace simulated with all of them, with none, and with each left out.

    tokenspeed-compile CONFIG --target h200 --max-context 131072 --max-sequences 64 -o 8b.bin
    python benchmarks/agent_traffic.py --plan 8b.bin --traces FOLDER --out FOLDER [--agents 8,24,64] [--arms all]

Runs are simulations of the plan's own scheduler (docs/simulation.md), in a closed loop: so many sessions for each agent, those of
the trace and, where they are too few, the same with other contents. Gaps are cut at --most-gap, or a session left for the night
would be all of the makespan. --arms: agentic, plain, and FEATURE for all features but that one; "all" for everything. A report of
each run goes to --out as JSON; a run whose report is there is not run again. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import msgspec
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.statistics import Summary
from tokenspeed.runtime.scheduling.ablation import FEATURES, POLICIES, without
from tokenspeed.runtime.scheduling.policy import AGENTIC, Policy
from tokenspeed.runtime.simulation.command import DEFAULT_HOST_TOKEN_SECONDS
from tokenspeed.runtime.simulation.report import TrafficReport
from tokenspeed.runtime.simulation.simulate import Scenario, simulate, with_host_tier
from tokenspeed.runtime.simulation.virtual_engine import EngineSettings
from tokenspeed.runtime.traffic.reading import read_trace
from tokenspeed.runtime.traffic.scaling import cap_gaps, cut_at_context, with_sessions
from tokenspeed.runtime.traffic.session import Trace

_COLUMNS = (
    "agents",
    "host tier",
    "policy",
    "hit",
    "makespan",
    "of plain",
    "TTFT p50 / p90 / p99",
    "turn p50 / p90 / p99",
    "p90 of plain",
    "TPOT p50 / p90 / p99",
    "reloaded",
    "preempted, recomputed",
    "busy",
)
HIT_GOAL, MAKESPAN_GOAL, TURN_GOAL = 0.90, 1 / 2, 1 / 3


@dataclass(frozen=True)
class Arm:
    """One run: its policy by name, agents, and tokens that the host tier holds."""

    name: str
    agents: int
    host_tokens: int

    @property
    def policy(self) -> Policy:
        return POLICIES[self.name] if self.name in POLICIES else without(AGENTIC, [self.name])

    @property
    def label(self) -> str:
        return self.name if self.name in POLICIES else f"without {self.name}"

    @property
    def file(self) -> str:
        return f"{self.name}-{self.agents}-{self.host_tokens}.json"


@dataclass(frozen=True)
class Options:
    plan: Path
    traces: Path
    out: Path
    sessions: float
    most_gap: float
    host_seconds: float
    pool: float = 1.0


def traffic(options: Options, manifest: Manifest, agents: int) -> Trace:
    """The trace as far as the plan goes, with enough sessions for so many agents."""
    trace = cut_at_context(read_trace(options.traces), manifest.model.max_context)
    trace = with_sessions(trace, round(agents * options.sessions))
    return cap_gaps(trace, options.most_gap)


def with_pool(manifest: Manifest, share: float) -> Manifest:
    """The plan with so much of its KV pool."""
    blocks = round(manifest.kv.blocks * share)
    return msgspec.structs.replace(manifest, kv=msgspec.structs.replace(manifest.kv, blocks=blocks))


def with_host_tokens(manifest: Manifest, tokens: int) -> Manifest:
    kv = manifest.kv
    return with_host_tier(manifest, -(-tokens // kv.block_tokens) * kv.bytes_per_block)


def run(options: Options, arm: Arm) -> tuple[Arm, TrafficReport | None, str]:
    """In a process of its own. A report that is there already is read instead."""
    path = options.out / arm.file
    if path.exists():
        return arm, msgspec.json.decode(path.read_bytes(), type=TrafficReport), ""
    start = time.process_time()
    try:
        with Plan.open(options.plan) as plan:
            manifest, plan_id = with_pool(plan.manifest, options.pool), plan.plan_id
        engine = EngineSettings(options.host_seconds, host_token_seconds=DEFAULT_HOST_TOKEN_SECONDS)
        scenario = Scenario(arm.agents, 1.0, arm.policy, engine, {"id": plan_id, "arm": arm.label})
        report = simulate(with_host_tokens(manifest, arm.host_tokens), traffic(options, manifest, arm.agents), scenario)
    except TokenspeedError as error:
        return arm, None, str(error)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
    print(f"{arm}: {time.process_time() - start:.0f} s of CPU time", file=sys.stderr)
    return arm, report, ""


def table(results: Sequence[tuple[Arm, TrafficReport | None, str]]) -> str:
    """Markdown, a line for each run; makespan and turns also as parts of the plain one's without a host tier."""
    plain = {arm.agents: report for arm, report, _ in results if report and arm.name == "plain" and not arm.host_tokens}
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + "---|" * len(_COLUMNS)]
    for arm, report, error in results:
        cells = [str(arm.agents), _tokens(arm.host_tokens), arm.label]
        cells += [error.splitlines()[0]] if report is None else _figures(report, plain.get(arm.agents))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figures(report: TrafficReport, plain: TrafficReport | None) -> list[str]:
    """Under the columns from "hit" on."""
    assert report.cache is not None and report.machine is not None
    turns = report.all
    return [
        f"{report.cache.hit_rate:.3f}",
        f"{report.makespan_seconds / 60:.1f} min",
        f"{report.makespan_seconds / plain.makespan_seconds:.2f}" if plain else "",
        f"{_three(turns.ttft_seconds, _seconds)} s",
        f"{_three(turns.turn_seconds, _seconds)} s",
        f"{turns.turn_seconds.p90 / plain.all.turn_seconds.p90:.2f}" if plain else "",
        f"{_three(turns.tpot_seconds, _milliseconds)} ms",
        f"{report.cache.reloaded_tokens / 1e6:.1f} M",
        f"{report.machine.preemptions}, {report.cache.recomputed_tokens / 1e6:.1f} M",
        f"{report.machine.busy_share:.0%}",
    ]


def goals(results: Sequence[tuple[Arm, TrafficReport | None, str]]) -> list[str]:
    """Those at 24 and 64 agents with a host tier, met or missed."""
    reports = {(arm.name, arm.agents, bool(arm.host_tokens)): report for arm, report, _ in results if report is not None}
    lines = []
    for agents in (24, 64):
        ours, plain = reports.get(("agentic", agents, True)), reports.get(("plain", agents, False))
        if ours is None or plain is None or ours.cache is None:
            continue
        found = (
            ("hit rate", ours.cache.hit_rate, ours.cache.hit_rate >= HIT_GOAL, f">= {HIT_GOAL:.2f}"),
            _part("makespan of plain's", ours.makespan_seconds, plain.makespan_seconds, MAKESPAN_GOAL),
            _part("p90 turn of plain's", ours.all.turn_seconds.p90, plain.all.turn_seconds.p90, TURN_GOAL),
        )
        lines += [
            f"{agents} agents, {name}: {value:.3f}, goal {goal}: {'met' if met else 'MISSED'}" for name, value, met, goal in found
        ]
    return lines


def _part(name: str, value: float, base: float, goal: float) -> tuple[str, float, bool, str]:
    return name, value / base, value / base <= goal, f"<= {goal:.2f}"


def _tokens(count: int) -> str:
    return f"{count / 1e6:g} M" if count else "none"


def _three(summary: Summary, show: Callable[[float], str]) -> str:
    return " / ".join(show(value) for value in (summary.p50, summary.p90, summary.p99))


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--traces", type=Path, required=True, help="Folder of sessions (docs/simulation.md names the formats).")
    parser.add_argument("--out", type=Path, required=True, help="Folder for the reports.")
    parser.add_argument("--agents", default="8,24,64")
    parser.add_argument("--host-tokens", default="0,1000000")
    parser.add_argument("--arms", default="agentic,plain", help=f"Of agentic, plain, {', '.join(FEATURES)}; or all.")
    parser.add_argument("--sessions", type=float, default=1.5, help="Sessions for each agent.")
    parser.add_argument("--most-gap", type=float, default=60.0, help="Seconds.")
    parser.add_argument("--host-seconds", type=float, default=0.5e-3, help="Host time of a step.")
    parser.add_argument("--pool", type=float, default=1.0, help="Share of the KV pool, with fewer agents: for a quick look.")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    options = Options(given.plan, given.traces, given.out, given.sessions, given.most_gap, given.host_seconds, given.pool)
    names = ["agentic", "plain", *FEATURES] if given.arms == "all" else given.arms.split(",")
    arms = [
        Arm(name, int(agents), int(tokens))
        for agents in given.agents.split(",")
        for tokens in given.host_tokens.split(",")
        for name in names
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs) as pool:
        results = list(pool.map(run, [options] * len(arms), arms))
    print(table(results))
    print("\n".join(["", *goals(results)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
