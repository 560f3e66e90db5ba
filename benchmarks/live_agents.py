"""Agents' traffic over HTTP, with the scheduler's features and without: one server after another, the same trace to each.

    tokenspeed-compile CONFIG --target h200 --max-context 65536 --max-sequences 32 --memory 28GiB --host-kv 32GiB -o plan.bin
    python benchmarks/live_agents.py plan.bin --trace FOLDER --agents 12 --sessions 18 --context-scale 0.5 --out result.json
    python benchmarks/live_agents.py plan.bin --trace FOLDER ... --simulated [--pool-tokens 100000]    # nothing is started

Arms (--arm, repeated): `agentic` and `plain` are policies, FEATURE is the default policy without it; `@BYTES` behind a name
serves a copy of the plan with so much of the host's memory as a tier (`plain@0`: none). Default: plain@0 and agentic.

For each arm: `tokenspeed-run` is started, warmed up with other contents, and the trace is played to it (`tokenspeed-bench
replay`, a closed loop; docs/benchmarking.md has the options), for --seconds at most: what has not ended by then is counted, not
waited for. Then the simulator plays the same traffic at the plan's own rates, with this server's constants: what a step cost the
engine's loop, and what a request of few and of many tokens costs outside of steps, asked once the traffic is over. Prints a
table in Markdown, one of the errors of the predictions, and writes all reports to --out.

With --paced nothing is computed, and no device is needed: server, engine loop and scheduler are the real ones, steps take what
the plan predicts, and the errors are those of what the simulator leaves out.

The device's pool should hold a few of the sessions and not all: compile the plan with little --memory (the weights' and some
gigabytes more), so that few sessions show in two minutes what many do in an hour. --simulated with --pool-tokens tells
beforehand what a plan with such a pool will show, and whether it fits the time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from live.arms import Arm, plan_of, with_pool
from live.playing import play
from live.predicted import Constants, predict
from live.report import Result, error_table, table
from live.traffic import Traffic, left_out
from tokenspeed.plans.errors import TokenspeedError
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.runtime.benchmark.environment import environment


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--trace", required=True, help="as for tokenspeed-bench replay")
    parser.add_argument("--arm", action="append", help="agentic, plain, FEATURE, each with @BYTES behind it; repeated")
    parser.add_argument("--weights", default="dummy", help="as for tokenspeed-run")
    parser.add_argument("--option", action="append", default=[], help="a further word for tokenspeed-run, as --option=--threads")
    parser.add_argument("--agents", type=int, default=12)
    parser.add_argument("--sessions", type=int, help="[default: one for each agent]")
    parser.add_argument("--max-turns", type=int)
    parser.add_argument("--context-scale", type=float, default=1.0)
    parser.add_argument("--most-gap", type=float, default=10.0, help="seconds that a client waits at most between turns")
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=150.0, help="limit of one arm's traffic")
    parser.add_argument("--warm-up-turns", type=int, default=2)
    parser.add_argument("--simulated", action="store_true", help="predictions alone")
    parser.add_argument("--paced", action="store_true", help="servers without a machine: steps take what the plan predicts")
    parser.add_argument("--pool-tokens", type=int, help="with --simulated: as if the device held so many")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    options = parser.parse_args()
    if options.pool_tokens is not None and not options.simulated:
        parser.error("a plan's pool is what it is: --pool-tokens goes with --simulated")
    try:
        results = _all(options)
    except TokenspeedError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(table(results))
    print("\n" + error_table(results))
    if options.out is not None:
        options.out.write_text(json.dumps(_report(options, results), indent=1))
    return int(any(result.served is not None and result.lines()[0].failed for result in results.values()))


def _report(options: argparse.Namespace, results: Mapping[str, Result]) -> dict[str, Any]:
    asked = {name: value for name, value in vars(options).items() if name != "out"}
    arms = {name: result.data() for name, result in results.items()}
    return {"asked": asked | {"plan": str(options.plan)}, "machine": msgspec.to_builtins(environment()), "arms": arms}


def _traffic(options: argparse.Namespace, manifest: Manifest) -> Traffic:
    return Traffic(
        trace=options.trace,
        agents=options.agents,
        sessions=options.sessions or options.agents,
        max_turns=options.max_turns,
        context_scale=options.context_scale,
        most_gap=options.most_gap,
        time_scale=options.time_scale,
        seconds=options.seconds,
        max_context=min(manifest.model.max_context, manifest.kv.blocks * manifest.kv.block_tokens),
        warm_up_turns=options.warm_up_turns,
    )


def _all(options: argparse.Namespace) -> dict[str, Result]:
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest if options.pool_tokens is None else with_pool(plan.manifest, options.pool_tokens)
    arms = {text: Arm.parse(text) for text in options.arm or ["plain@0", "agentic"]}
    traffic = _traffic(options, manifest)
    trace, warm_up, pool = traffic.shaped(), traffic.warm_up(), manifest.kv.blocks * manifest.kv.block_tokens
    _say(f"{len(trace.sessions)} sessions, {trace.turns} turns, {left_out(trace)}; the device holds {pool:,} tokens")
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        for text, arm in arms.items():
            started, served = time.monotonic(), None
            if not options.simulated:
                words = ["--weights", options.weights, *arm.words, *options.option]
                path = plan_of(arm, options.plan, Path(folder))
                served = play(path, words, traffic, Path(folder), text, paced=options.paced)
                _say(f"{text}: measured in {time.monotonic() - started:.0f} s, {'; '.join(served.report.errors) or 'no errors'}")
            constants = served.constants if served else Constants()
            results[text] = Result(arm.label, predict(manifest, arm, traffic, trace, warm_up, constants), constants, served)
            _say(f"{text}: {time.monotonic() - started:.0f} s in all, {constants}")
    return results


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
