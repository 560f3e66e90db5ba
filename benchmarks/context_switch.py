"""What it takes to go on with a session of many tokens: from the device's cache, from the host's memory, and computed again.

    tokenspeed-compile examples/configs/llama-3.1-8b.json --target h200 --max-context 65536 --memory 28GiB --host-kv 48GiB \
        --max-sequences 32 -o plan.bin
    python benchmarks/context_switch.py plan.bin [--tokens 10000]... [--new 64] [--repeats 3] [--weights dummy]
    python benchmarks/context_switch.py plan.bin --simulated                  # the plan's scheduler alone, in virtual time
    tokenspeed-run plan.bin --weights dummy --without retention --without supersede     # and over HTTP, from this server:
    python benchmarks/context_switch.py plan.bin --url http://127.0.0.1:8000
    python benchmarks/context_switch.py plan.bin --disk-kv /mnt/nvme --disk-kv-bytes 24GiB     # after a restart, from disk

The plan's pool on the device must hold the longest session, and should hold little more: other prompts fill it twice, each of a
quarter of it, so that the session is in the host's memory alone; for that the least recently used must go first. The tier must
hold both sessions of a sample and what fills the pool. Weights are made up unless a path is given.

First, how long the engine took to be ready with its tier, and whether its first prompt took longer than later ones. Then what
the link carries: one way, both ways at once, and KV blocks as the tier copies them (128 KiB of each of 64 caches in one call;
layer by layer, two in a call). Then, for each number of tokens, the seconds from a prompt (the session and `--new` more tokens)
to its first token, without HTTP unless --url is given. With --disk-kv nothing but this: the session goes to disk, the scheduler
is made anew as after a restart (the weights stay), and the session goes on.

A sample tells how many of the prompt's tokens came from the device and
from the host and how many were computed, each time; it counts where the whole session was where it should be. Medians are of
--repeats samples that count; where twice as many do not give them, the session is said not to be whole, and the exit code is 1.
Prints JSON lines; the last ones have the ratios beside the goals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from context.after_restart import after_restart
from context.clients import Client, InProcess, InVirtualTime, OverHttp, Reply, WithDisk
from context.link import link_rates, memory_rate
from tokenspeed.plans.host_tier import HOST_LINK, host_tier
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest
from tokenspeed.plans.units import parse_bytes
from tokenspeed.runtime.disk_kv import check_disk_kv

HOST_GOAL, DEVICE_GOAL = 4.0, 20.0
"""How many times faster than computing again."""

_FILLINGS, _FILLING_PARTS = 2, 4
"""Pools of other prompts, and prompts of each."""

_FIRST_PROMPT = 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--tokens", type=int, action="append", help="of a session; repeated [default: 10000 and 50000]")
    parser.add_argument("--new", type=int, default=64, help="tokens that a turn adds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", default="dummy", help="as for tokenspeed-run; with --url those of the server count")
    parser.add_argument("--url", help="a server of this plan, instead of an engine in this process")
    parser.add_argument("--simulated", action="store_true", help="the plan's scheduler and the times that the plan predicts")
    parser.add_argument("--disk-kv", metavar="FOLDER", help="measure going on from disk, after a restart, and nothing else")
    parser.add_argument("--disk-kv-bytes", default="24GiB", help="how much of that disk")
    parser.add_argument("--no-link", action="store_true", help="leave the link's rates out")
    options = parser.parse_args()
    sizes: list[int] = options.tokens or [10000, 50000]
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest
        tier = host_tier(manifest)
        if tier is None:
            parser.error("the plan has no host tier: compile it with --host-kv")
        say({"plan": options.plan.name, "target": manifest.target.name, "model": manifest.model.name, "host_tier": tier.data()})
        if options.disk_kv is not None:
            return _from_disk(plan, sizes, options)
        for tokens in sizes:
            _check_sizes(manifest, tokens, options.new, tier.tokens)
        client: Client
        if options.url is not None:
            client = OverHttp(options.url, manifest.model.name)
        elif options.simulated:
            client = InVirtualTime(plan)
        else:
            client = _started(plan, options.weights, manifest)
            if not options.no_link:
                say({"link": _link(manifest), "plan_says": manifest.performance.rates[HOST_LINK].value})
    try:
        found = [_session(client, manifest, tokens, options) for tokens in sizes]
    finally:
        client.close()
    for line in found:
        say(line)
    return 0 if all(line["valid"] for line in found) else 1


def _from_disk(plan: Plan, sizes: list[int], options: argparse.Namespace) -> int:
    most_bytes = check_disk_kv(plan.manifest, Path(options.disk_kv), parse_bytes(options.disk_kv_bytes, "--disk-kv-bytes"))
    client = WithDisk(plan, options.weights, options.disk_kv, most_bytes)
    try:
        found = [after_restart(client, plan.manifest, tokens, options.new, options.repeats) for tokens in sizes]
    finally:
        client.close()
    for line in found:
        say(line)
    return 0 if all(line["valid"] for line in found) else 1


def _link(manifest: Manifest) -> dict[str, Any]:
    if manifest.device is None:
        return memory_rate()
    from tokenspeed.runtime.device.device import Device
    from tokenspeed.runtime.device.driver import Driver

    with Device(Driver.open(manifest.device.vendor), 0) as device:
        rates = {"device": device.name, **link_rates(device)}
        device.close()
    return rates


def _started(plan: Plan, weights: str, manifest: Manifest) -> InProcess:
    """An engine, with a line about its start: page-locking the tier once held up the first prompt."""
    engine, random = InProcess(plan, weights), np.random.default_rng(0)
    count = min(_FIRST_PROMPT, manifest.model.max_context - 1)
    prompts = [engine.first_token(_tokens(random, manifest, count), f"start {number}").seconds for number in range(3)]
    phases = {name: round(value, 3) for name, value in engine.phases.items()}
    say({
        "ready_seconds": round(engine.load_seconds, 3), "phases": phases,
        "prompt_tokens": count, "first_prompts_seconds": [round(seconds, 4) for seconds in prompts],
    })  # fmt: skip
    return engine


def _check_sizes(manifest: Manifest, tokens: int, new: int, tier: int) -> None:
    """Raises SystemExit where a session of so many tokens cannot be measured with this plan."""
    pool = manifest.kv.blocks * manifest.kv.block_tokens
    least = tokens + new + manifest.kv.identity_tokens
    if least > min(pool, manifest.model.max_context):
        raise SystemExit(
            f"{tokens} tokens and {new} more do not fit: the pool holds {pool}, the context {manifest.model.max_context}"
        )
    wanted = 2 * least + _FILLINGS * pool
    if tier < wanted:
        raise SystemExit(
            f"a session of {tokens} tokens would not stay whole: the host tier holds {tier} tokens, and must hold {wanted}: "
            f"two sessions, and {_FILLINGS} times the pool. Compile the plan with a larger --host-kv, or a smaller --memory"
        )


def _session(client: Client, manifest: Manifest, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the three ways to go on with a session of so many tokens, and what they are of each other."""
    random = np.random.default_rng(tokens)
    samples: dict[str, list[float]] = {"recomputed": [], "device": [], "host": []}
    unit = manifest.kv.identity_tokens
    whole, prompt, tries = tokens // unit * unit, tokens + options.new, 1 + 2 * options.repeats
    for number in range(tries):
        salt = f"{tokens}.{number}"
        session = _tokens(random, manifest, tokens)
        replies = {"recomputed": client.first_token(session + _tokens(random, manifest, options.new), f"{salt}.other")}
        client.first_token(session, salt)
        replies["device"] = client.first_token(session + _tokens(random, manifest, options.new), salt)
        _fill(client, manifest, random, salt)
        replies["host"] = client.first_token(session + _tokens(random, manifest, options.new), salt)
        wanted = {"recomputed": (0, 0), "device": (whole, 0), "host": (whole, whole)}
        right = all((reply.cached, reply.from_host) == wanted[name] for name, reply in replies.items())
        say(
            {
                "tokens": tokens,
                "sample": number,
                **{name: _told(reply, prompt) for name, reply in replies.items()},
                "whole": right,
            }
        )
        if number and right:  # the first warms up
            for name, reply in replies.items():
                samples[name].append(reply.seconds)
            if len(samples["host"]) == options.repeats:
                break
    if len(samples["host"]) < options.repeats:
        failed = (
            f"the session was whole where it should be in {len(samples['host'])} of {tries - 1} samples, not in {options.repeats}"
        )
        print(f"{tokens} tokens: {failed}; see the samples", file=sys.stderr)
        return {"tokens": tokens, "valid": False, "failed": failed}
    medians = {name: statistics.median(found) for name, found in samples.items()}
    carried = whole / manifest.kv.block_tokens * sum(manifest.kv.pool_block_bytes)
    reload = medians["host"] - medians["device"]
    times = {name: medians["recomputed"] / medians[name] for name in ("host", "device")}
    return {
        "tokens": tokens,
        **{f"{name}_milliseconds": round(seconds * 1e3, 3) for name, seconds in medians.items()},
        "host_times_faster": round(times["host"], 2),
        "device_times_faster": round(times["device"], 2),
        "reload_bytes_per_second": round(carried / reload) if reload > 0 else None,
        "goals": {"host_times_faster": HOST_GOAL, "device_times_faster": DEVICE_GOAL},
        "reached": {"host": times["host"] >= HOST_GOAL, "device": times["device"] >= DEVICE_GOAL},
        "valid": True,
    }


def _told(reply: Reply, prompt: int) -> dict[str, float]:
    """A reply, and where the prompt's tokens came from."""
    return {
        "seconds": round(reply.seconds, 5),
        "from_device": reply.cached - reply.from_host,
        "from_host": reply.from_host,
        "computed": prompt - reply.cached,
    }


def _fill(client: Client, manifest: Manifest, random: np.random.Generator, salt: str) -> None:
    """Other prompts through the pool."""
    pool, most = manifest.kv.blocks * manifest.kv.block_tokens, manifest.model.max_context - 1
    each = min(most, pool // _FILLING_PARTS)
    for number in range(-(-_FILLINGS * pool // each)):
        client.first_token(_tokens(random, manifest, each), f"{salt}.{number}")


def _tokens(random: np.random.Generator, manifest: Manifest, count: int) -> list[int]:
    return random.integers(10, manifest.model.vocabulary - 10, count).tolist()


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
