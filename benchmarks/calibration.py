"""The simulator against the live engine: the same plan, the same traffic; by how much the percentiles of the latencies differ.

    python benchmarks/calibration.py run PLAN [--weights dummy] --out FOLDER [--trace synthetic:sessions=6,seed=1 --agents 3 ...]
    python benchmarks/calibration.py compare SIMULATED.json MEASURED.json

`run` measures the plan's steps (`tokenspeed-bench latency`: few and many sequences, short and long contexts and prompts), starts
a server, warms it up and plays the trace to it (`tokenspeed-bench replay`), and measures the steps again, as machines change. It
fits the machine's rates to both, simulates the same at those rates and with that server's own constants (what a step and a token
cost its loop, and a request on its way), and compares. With --plan-rates it simulates at the plan's. With --paced nothing is
computed and steps take what the plan predicts, so that what differs is what the simulator leaves out. All reports stay in FOLDER.
Exit code 1 when a percentile of TTFT or TPOT is further than the goal from what was measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from fitting import distance, fitted
from live.arms import Arm
from live.playing import play
from live.predicted import predict
from live.traffic import Traffic
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.roofline import decode_work, predicted_seconds, prompt_work
from tokenspeed.runtime.simulation.report import TrafficReport
from tokenspeed.runtime.simulation.simulate import with_rates

GOAL = 0.10
_LATENCIES = ("ttft_seconds", "tpot_seconds", "inter_token_seconds", "turn_seconds")
_WITH_GOAL = ("ttft_seconds", "tpot_seconds")
_PERCENTILES = ("p50", "p90", "p99")

_SPARE = 64
"""Tokens of context that a measurement leaves free."""
_BOUNDS = {
    "compute": (1e6, 1e17),
    "bandwidth": (1e6, 1e15),
    "dispatch": (1e-9, 1e-2),
    "attention": (1e6, 1e17),
    "kv_bandwidth": (1e6, 1e15),
    "overlap": (1.0, 100.0),
}


class Difference(msgspec.Struct, frozen=True):
    """`error` is (simulated - measured) / measured."""

    latency: str
    statistic: str
    simulated: float
    measured: float

    @property
    def error(self) -> float:
        return self.simulated / self.measured - 1 if self.measured else 0.0

    @property
    def misses(self) -> bool:
        return self.latency in _WITH_GOAL and abs(self.error) > GOAL


def compare(simulated: TrafficReport, measured: TrafficReport) -> list[Difference]:
    """Raises SystemExit when the reports are of different traffic."""
    for name in ("turns", "input_tokens", "output_tokens"):
        one, two = getattr(simulated.all, name), getattr(measured.all, name)
        if abs(one - two) > 0.01 * two:
            raise SystemExit(f"these are not reports of the same traffic: {one} and {two} {name}")
    found = []
    for latency in _LATENCIES:
        ours, theirs = getattr(simulated.all, latency), getattr(measured.all, latency)
        found += [Difference(latency, name, getattr(ours, name), getattr(theirs, name)) for name in ("mean", *_PERCENTILES)]
    found.append(Difference("makespan_seconds", "", simulated.makespan_seconds, measured.makespan_seconds))
    found.append(Difference("hit_rate", "", simulated.all.hit_rate, measured.all.hit_rate))
    return found


def table(differences: Sequence[Difference]) -> str:
    """Markdown."""
    lines = ["| | | simulated | measured | error |", "|---|---|---|---|---|"]
    for item in differences:
        mark = " MISSED" if item.misses else ""
        lines.append(
            f"| {item.latency} | {item.statistic} | {item.simulated:.4g} | {item.measured:.4g} | {item.error:+.1%}{mark} |"
        )
    return "\n".join(lines)


class _Point(msgspec.Struct):
    rows: int
    context_tokens: int
    seconds: dict[str, float]


class _Latency(msgspec.Struct):
    """What is read of `tokenspeed-bench latency --json`."""

    prompt: _Point
    decode: list[_Point]


@dataclass(frozen=True)
class _Asked:
    """What `tokenspeed-bench latency` is asked for: tokens of the context that sequences decode behind, and of the prompt."""

    context: int
    prompt: int


def steps_to_measure(manifest: Manifest, steps: int, prompt: int) -> tuple[list[int], list[_Asked]]:
    """Batches, and contexts short and as long as the pool holds for all of them; prompts of one chunk and of as long as fits."""
    schedule, kv = manifest.schedule, manifest.kv
    batches = sorted({1, min(4, schedule.max_decode_rows), min(schedule.max_decode_rows, 16)})
    room = min(manifest.model.max_context, (kv.blocks // batches[-1]) * kv.block_tokens) - steps - _SPARE
    short = max(1, min(64, room))
    longest = min(manifest.model.max_context, kv.blocks * kv.block_tokens) - 1
    return batches, [_Asked(short, min(prompt, longest)), _Asked(max(short, room), min(8 * prompt, longest))]


def fitted_rates(manifest: Manifest, reports: Sequence[_Latency]) -> dict[str, float]:
    """Rates at which the cost model comes nearest to the measured medians."""
    chunk = manifest.schedule.prefill_chunk
    measured = [(prompt_work(report.prompt.rows, chunk), report.prompt.seconds["p50"]) for report in reports]
    measured += [
        (decode_work(point.rows, point.context_tokens), point.seconds["p50"]) for report in reports for point in report.decode
    ]

    def far(rates: Mapping[str, float]) -> float:
        performance = with_rates(manifest, rates, "").performance
        return distance((predicted_seconds(performance, work), seconds) for work, seconds in measured)

    known = manifest.performance.rates
    start = {name: known[name].value for name in ("compute", "bandwidth", "dispatch")}
    start |= {"attention": start["compute"], "kv_bandwidth": start["bandwidth"], "overlap": 2.0}
    return fitted(start, _BOUNDS, far)


def _run(given: argparse.Namespace) -> tuple[Path, Path]:
    """Where the reports are, simulated and measured."""
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    words = ["--weights", given.weights] if given.weights else []
    words += ["--threads", str(given.threads)] if given.threads else []
    with Plan.open(given.plan) as plan:
        manifest = plan.manifest
    traffic = Traffic(
        trace=given.trace,
        agents=given.agents,
        sessions=given.sessions,
        max_turns=given.max_turns,
        context_scale=given.context_scale,
        most_gap=given.most_gap,
        time_scale=given.time_scale,
        seconds=given.seconds,
        max_context=min(manifest.model.max_context, manifest.kv.blocks * manifest.kv.block_tokens),
        warm_up_turns=given.warm_up_turns,
    )
    fits, reports = not (given.plan_rates or given.paced), list[_Latency]()
    if fits:
        reports += _measured_steps(given, manifest, words, "before")
    served = play(given.plan, words, traffic, out, "calibration", paced=given.paced)
    if fits:
        reports += _measured_steps(given, manifest, words, "after")
        manifest = _at_measured_rates(given.out, manifest, reports)
    print(served.constants, file=sys.stderr)
    report = predict(manifest, Arm("agentic"), traffic, traffic.shaped(), traffic.warm_up(), served.constants)
    simulated, measured = out / "simulated.json", out / "measured.json"
    for path, found in ((simulated, report), (measured, served.report)):
        path.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1))
    return simulated, measured


def _measured_steps(given: argparse.Namespace, manifest: Manifest, words: Sequence[str], when: str) -> list[_Latency]:
    batches, asked = steps_to_measure(manifest, given.steps, given.prompt_tokens)
    common = ["--batch", ",".join(map(str, batches)), "--steps", str(given.steps), "--json"]
    reports: list[_Latency] = []
    for item in asked:
        lengths = ["--context", str(item.context), "--prompt-tokens", str(item.prompt)]
        said = _command("bench", "latency", str(given.plan), *words, *lengths, *common)
        (given.out / f"latency-{when}-{item.context}.json").write_text(said)
        reports.append(msgspec.json.decode(said, type=_Latency))
    return reports


def _at_measured_rates(out: Path, manifest: Manifest, reports: Sequence[_Latency]) -> Manifest:
    """The plan at the rates that its steps have here and now."""
    found = fitted_rates(manifest, reports)
    _say_steps(manifest, reports, found)
    (out / "rates.json").write_bytes(msgspec.json.encode(found))
    print("rates fitted to the measured steps:", {name: f"{value:.3g}" for name, value in found.items()}, file=sys.stderr)
    return with_rates(manifest, found, "measured steps")


def _say_steps(manifest: Manifest, reports: Sequence[_Latency], rates: Mapping[str, float]) -> None:
    """By how much the cost model misses the steps that the rates are fitted to: no simulation at them is nearer."""
    performance, chunk = with_rates(manifest, rates, "").performance, manifest.schedule.prefill_chunk
    for report in reports:
        for kind, point in (("prompt", report.prompt), *(("decode", point) for point in report.decode)):
            work = prompt_work(point.rows, chunk) if kind == "prompt" else decode_work(point.rows, point.context_tokens)
            error = predicted_seconds(performance, work) / point.seconds["p50"] - 1
            print(f"{kind} {point.rows} of {point.context_tokens}: {error:+.1%}", file=sys.stderr)


def _command(tool: str, *arguments: str) -> str:
    """What `tokenspeed-TOOL` prints. Raises SystemExit when it fails."""
    script = f"from tokenspeed.runtime.{tool}_cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"tokenspeed-{tool} {' '.join(arguments)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    pair = commands.add_parser("compare")
    pair.add_argument("simulated", type=Path)
    pair.add_argument("measured", type=Path)
    live = commands.add_parser("run")
    live.add_argument("plan", type=Path)
    live.add_argument("--out", type=Path, required=True)
    live.add_argument("--weights", help="as for tokenspeed-run")
    live.add_argument("--threads", type=int)
    live.add_argument("--trace", default="synthetic:sessions=6,seed=1")
    live.add_argument("--agents", type=int, default=3)
    live.add_argument("--sessions", type=int)
    live.add_argument("--max-turns", type=int)
    live.add_argument("--context-scale", type=float, default=1.0)
    live.add_argument("--most-gap", type=float)
    live.add_argument("--time-scale", type=float, default=1.0)
    live.add_argument("--seconds", type=float, default=3600.0, help="limit of the traffic")
    live.add_argument("--warm-up-turns", type=int, default=2)
    live.add_argument("--plan-rates", action="store_true", help="simulate at the plan's own rates")
    live.add_argument("--paced", action="store_true", help="a server without a machine: steps take what the plan predicts")
    live.add_argument("--steps", type=int, default=32, help="decode steps measured for the rates")
    live.add_argument("--prompt-tokens", type=int, default=512, help="shorter prompt measured for the rates")
    given = parser.parse_args()
    paths = (given.simulated, given.measured) if given.command == "compare" else _run(given)
    simulated, measured = (msgspec.json.decode(path.read_bytes(), type=TrafficReport) for path in paths)
    differences = compare(simulated, measured)
    print(table(differences))
    return int(any(item.misses for item in differences))


if __name__ == "__main__":
    sys.exit(main())
