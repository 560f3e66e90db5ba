"""What it takes to go on with a session of many tokens: from the device's cache, from the host's memory, and computed again.

    tokenspeed-compile examples/configs/llama-3.1-8b.json --target h200 --max-context 65536 --memory 28GiB --host-kv 48GiB \
        --max-sequences 8 -o plan.bin
    python benchmarks/context_switch.py plan.bin [--tokens 10000]... [--new 64] [--repeats 3] [--weights dummy]
    tokenspeed-run plan.bin --weights dummy --without retention --without supersede     # and over HTTP, from this server:
    python benchmarks/context_switch.py plan.bin --url http://127.0.0.1:8000

The plan's pool on the device must hold the longest session, and should hold little more: other prompts fill it, so that the
session is in the host's memory alone; for that the least recently used must go first. Its tier must hold several such pools.
Weights are made up unless a path is given.

First what the link carries: one way, both ways at once, and KV blocks as the tier copies them (128 KiB of each of 64 caches in
one call; layer by layer, two in a call). Then, for each number of tokens, the seconds from a prompt (the session and `--new` more
tokens) to its first token, without HTTP unless --url is given: medians of the repeats. Samples are right if what was cached, and
what of it came from the host, is what it should be. Prints JSON lines; the last ones have the ratios beside the goals.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from context.clients import Client, InProcess, OverHttp, Reply
from context.link import link_rates, memory_rate
from tokenspeed.plans.host_tier import HOST_LINK, host_tier
from tokenspeed.plans.reader import Plan
from tokenspeed.plans.schema import Manifest

HOST_GOAL, DEVICE_GOAL = 4.0, 20.0
"""How many times faster than computing again."""

_FILLINGS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--tokens", type=int, action="append", help="of a session; repeated [default: 10000 and 50000]")
    parser.add_argument("--new", type=int, default=64, help="tokens that a turn adds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", default="dummy", help="as for tokenspeed-run; with --url those of the server count")
    parser.add_argument("--url", help="a server of this plan, instead of an engine in this process")
    parser.add_argument("--no-link", action="store_true", help="leave the link's rates out")
    options = parser.parse_args()
    with Plan.open(options.plan) as plan:
        manifest = plan.manifest
        tier = host_tier(manifest)
        if tier is None:
            parser.error("the plan has no host tier: compile it with --host-kv")
        say({"plan": options.plan.name, "target": manifest.target.name, "model": manifest.model.name, "host_tier": tier.data()})
        if not options.no_link and options.url is None:
            say({"link": _link(manifest), "plan_says": manifest.performance.rates[HOST_LINK].value})
        client: Client
        if options.url is not None:
            client = OverHttp(options.url, manifest.model.name)
        else:
            client = engine = InProcess(plan, options.weights)
            say({"load_seconds": round(engine.load_seconds, 3)})
    try:
        found = [_session(client, manifest, tokens, options) for tokens in options.tokens or (10000, 50000)]
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


def _session(client: Client, manifest: Manifest, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of the three ways to go on with a session of so many tokens, and what they are of each other."""
    pool = manifest.kv.blocks * manifest.kv.block_tokens
    least = tokens + options.new + manifest.kv.identity_tokens
    if least > min(pool, manifest.model.max_context):
        raise SystemExit(
            f"{tokens} tokens and {options.new} more do not fit: the pool holds {pool}, the context {manifest.model.max_context}"
        )
    random = np.random.default_rng(tokens)
    samples: dict[str, list[float]] = {"recomputed": [], "device": [], "host": []}
    whole, valid = tokens // manifest.kv.identity_tokens * manifest.kv.identity_tokens, True
    for repeat in range(options.repeats + 1):
        salt = f"{tokens}.{repeat}"
        session = _tokens(random, manifest, tokens)
        first = client.first_token(session + _tokens(random, manifest, options.new), f"{salt}.other")
        client.first_token(session, salt)
        device = client.first_token(session + _tokens(random, manifest, options.new), salt)
        filled, host = time.perf_counter(), Reply(0.0, 0, 0)
        for filling in range(1, _FILLINGS + 1):
            _fill(client, manifest, random, pool * filling)
            host = client.first_token(session + _tokens(random, manifest, options.new), salt)
            if host.from_host or not host.cached:
                break
        right = (first.cached, device.cached, device.from_host) == (0, whole, 0) and host.cached == whole
        right = right and host.from_host >= whole - manifest.kv.identity_tokens
        say({
            "tokens": tokens, "sample": repeat, "recomputed": first, "device": device, "host": host, "right": right,
            "between_seconds": round(time.perf_counter() - filled, 2),
        })  # fmt: skip
        if repeat:  # the first warms up
            valid = valid and right
            for name, reply in (("recomputed", first), ("device", device), ("host", host)):
                samples[name].append(reply.seconds)
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
        "valid": valid,
    }


def _fill(client: Client, manifest: Manifest, random: np.random.Generator, tokens: int) -> None:
    """Other prompts, so many tokens of them, through the pool."""
    pool, most = manifest.kv.blocks * manifest.kv.block_tokens, manifest.model.max_context - 1
    each = min(most, pool - 2 * manifest.kv.identity_tokens)
    left = tokens
    while left > 0:
        client.first_token(_tokens(random, manifest, each), f"{left} of {tokens}")
        left -= each


def _tokens(random: np.random.Generator, manifest: Manifest, count: int) -> list[int]:
    return random.integers(10, manifest.model.vocabulary - 10, count).tolist()


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
