"""Going on with a session after the engine was started again: what it said is on disk, and nowhere else."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from tokenspeed.plans.schema import Manifest

from .clients import WithDisk

_SETTLED_SECONDS = 0.5
_MOST_SECONDS = 120.0


def after_restart(client: WithDisk, manifest: Manifest, tokens: int, new: int, repeats: int) -> dict[str, Any]:
    """Seconds to the first token of a session of so many tokens with `new` more, after a restart, and what it takes to compute
    them; medians of `repeats`. `valid`: the whole session came from disk each time."""
    random, unit = np.random.default_rng(tokens + 1), manifest.kv.identity_tokens
    whole, samples = tokens // unit * unit, list[dict[str, Any]]()

    def made(count: int) -> list[int]:
        return random.integers(10, manifest.model.vocabulary - 10, count).tolist()

    for number in range(repeats):
        salt, session = f"{tokens}.restart.{number}", made(tokens)
        recomputed = client.first_token(session + made(new), f"{salt}.other")
        client.first_token(session, salt)
        written = _written(client, made)
        client.restart()
        reply = client.first_token(session + made(new), salt)
        samples.append({
            "sample": number, "recomputed": recomputed.seconds, "disk": reply.seconds, "from_disk": client.stats.fetched_tokens,
            "cached": reply.cached, "restored": client.stats.restored_tokens, "restored_seconds": client.restored_seconds,
            "writing_seconds": written, "taken_for_bytes_per_second": round(client.bytes_per_second),
        })  # fmt: skip
    seconds = {name: statistics.median(sample[name] for sample in samples) for name in ("recomputed", "disk")}
    carried = whole // manifest.kv.block_tokens * manifest.kv.bytes_per_block
    return {
        "tokens": tokens,
        "after_restart": samples,
        **{f"{name}_milliseconds": round(value * 1e3, 3) for name, value in seconds.items()},
        "disk_times_faster": round(seconds["recomputed"] / seconds["disk"], 2),
        "bytes_per_second": round(carried / seconds["disk"]),
        "valid": all(sample["cached"] == sample["from_disk"] == whole for sample in samples),
    }


def _written(client: WithDisk, made: Any) -> float:
    """Small prompts, until all that came before is on disk: copies to the host ride on their steps. Seconds of it."""
    started = latest = time.perf_counter()
    before = client.stats
    while time.perf_counter() - latest < _SETTLED_SECONDS and time.perf_counter() - started < _MOST_SECONDS:
        client.first_token(made(8), "small")
        time.sleep(0.01)
        told = client.stats
        if (told.offloaded_tokens, told.stored_tokens) != (before.offloaded_tokens, before.stored_tokens):
            before, latest = told, time.perf_counter()
    return latest - started
