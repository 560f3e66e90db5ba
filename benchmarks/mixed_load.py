"""Somebody waits for short turns while long prompts saturate the machine: what each policy of the server makes of it, over HTTP.

    python benchmarks/mixed_load.py PLAN [--weights dummy] [--arm fcfs --arm agentic] [--out result.json]
    python benchmarks/mixed_load.py PLAN --simulated             # here, in virtual time, as the plan predicts
    python benchmarks/mixed_load.py --url http://127.0.0.1:8000 --max-context 32768

One server after another, each with the same requests: sessions of short turns of high priority, and a batch of long prompts of
low priority. Prints a line for each arm (latencies are the short turns') and what it is of the first one, and writes JSON.

Arms: `fcfs` (--policy plain, and no request says how urgent it is), `plain` (--policy plain, strict priorities), `agentic` (the
default), and `without:FEATURE` for the default without a feature of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from gpu.acceptance.server import Server as ServerProcess
from mixed.load import Load, Urgency, run_load
from mixed.report import figures, table
from mixed.simulated import simulate_load
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.benchmark.http_stream import Server
from tokenspeed.runtime.scheduling.ablation import POLICIES, without
from tokenspeed.runtime.scheduling.policy import AGENTIC

_BARE: dict[str, tuple[str, ...]] = {"fcfs": ("--policy", "plain"), "plain": ("--policy", "plain"), "agentic": ()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", nargs="?")
    parser.add_argument("--url", help="one server that runs already, instead of a plan")
    parser.add_argument("--simulated", action="store_true", help="no server: the plan's scheduler and predicted times")
    parser.add_argument("--weights", default="dummy", help="as for tokenspeed-run")
    parser.add_argument(
        "--arm", action="append", help="fcfs, plain, agentic, without:FEATURE; repeated [default: the first three]"
    )
    parser.add_argument("--option", action="append", default=[], help="a further word for tokenspeed-run, as --option=--threads")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--context", type=int, default=2048, help="tokens that a session begins with")
    parser.add_argument("--turn", type=int, default=64, help="tokens that a turn adds")
    parser.add_argument("--output", type=int, default=100, help="tokens of a turn's answer")
    parser.add_argument("--think", type=float, default=1.0, help="seconds between turns")
    parser.add_argument("--deadline-ms", type=float, default=500.0, help="until the first token of a turn")
    parser.add_argument("--inter-token-ms", type=float, default=28.0, help="between the tokens of a turn")
    parser.add_argument("--batch-requests", type=int, default=96)
    parser.add_argument("--batch-at-once", type=int, default=6)
    parser.add_argument("--batch-prompts", type=int, nargs=2, default=(8192, 30000), metavar=("LEAST", "MOST"))
    parser.add_argument("--batch-output", type=int, default=32)
    parser.add_argument("--max-context", type=int, default=32768, help="of the server, with --url")
    parser.add_argument("--seconds", type=float, default=240.0, help="limit of one arm's batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="where the JSON goes [default: standard output, after the table]")
    options = parser.parse_args()
    if (options.plan is None) == (options.url is None):
        parser.error("give a plan or --url")
    max_context, vocabulary = (options.max_context, 1000) if options.plan is None else _limits(options.plan)
    load = _load(options, max_context, vocabulary)
    if load.most + load.batch_output >= max_context or load.context + load.turn_tokens + 2 * load.output >= max_context:
        parser.error(f"these prompts do not fit a context of {max_context} tokens")
    arms: dict[str, dict[str, Any]] = {}
    for name in ["url"] if options.url else options.arm or ["fcfs", "plain", "agentic"]:
        arms[name] = _measure(name, options, load)
        print(json.dumps({"arm": name, **arms[name]}), file=sys.stderr, flush=True)
    print(table(arms))
    report = {"load": load.__dict__, "plan": options.plan, "host": platform.node(), "time": time.time(), "arms": arms}
    text = json.dumps(report, indent=1)
    if options.out:
        Path(options.out).write_text(text)
    else:
        print(text)
    return sum(arm["errors"] for arm in arms.values()) > 0


def _limits(plan: str) -> tuple[int, int]:
    with Plan.open(plan) as opened:
        return opened.manifest.model.max_context, opened.manifest.model.vocabulary


def _load(options: argparse.Namespace, max_context: int, vocabulary: int) -> Load:
    return Load(
        sessions=options.sessions,
        context=options.context,
        turn_tokens=options.turn,
        output=options.output,
        think_seconds=options.think,
        requests=options.batch_requests,
        at_once=options.batch_at_once,
        least=options.batch_prompts[0],
        most=options.batch_prompts[1],
        batch_output=options.batch_output,
        max_context=max_context,
        vocabulary=vocabulary,
        seed=options.seed,
    )


def _urgency(name: str, options: argparse.Namespace) -> Urgency:
    if name == "fcfs":
        return Urgency()
    interactive = {"service_tier": "priority", "deadline_ms": options.deadline_ms, "inter_token_ms": options.inter_token_ms}
    return Urgency(interactive, {"service_tier": "flex"})


def _measure(name: str, options: argparse.Namespace, load: Load) -> dict[str, Any]:
    urgency = _urgency(name, options)
    if options.url:
        return figures(asyncio.run(run_load(Server.parse(options.url), load, urgency, options.seconds)))
    if options.simulated:
        policy = POLICIES["plain"] if _BARE.get(name) else AGENTIC
        policy = policy if name in _BARE else without(AGENTIC, [name.removeprefix("without:")])
        with Plan.open(options.plan) as opened:
            return figures(simulate_load(opened.manifest, policy, load, urgency))
    arm = _BARE[name] if name in _BARE else ("--without", name.removeprefix("without:"))
    with ServerProcess([options.plan, "--weights", options.weights, *arm, *options.option], os.environ) as process:
        process.wait_ready()
        found = figures(asyncio.run(run_load(Server.parse(process.url), load, urgency, options.seconds)))
        found["startup_seconds"] = process.startup["total_seconds"]
        process.stop()
    return found


if __name__ == "__main__":
    sys.exit(main())
