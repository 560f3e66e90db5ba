"""A server of one arm under the traffic: started, warmed up, played to, asked what it counted, stopped."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
from gpu.acceptance.server import Server
from mixed.asking import counters
from tokenspeed.runtime.benchmark import http_stream
from tokenspeed.runtime.benchmark.replay import ReplayReport

from .predicted import Constants
from .probing import constants, probe
from .served import Served
from .traffic import Traffic

_PACED = str(Path(__file__).with_name("paced_server.py"))
_BENCH = "from tokenspeed.runtime.bench_cli import main; main()"


def play(plan: Path, words: Sequence[str], traffic: Traffic, folder: Path, name: str, *, paced: bool = False) -> Served:
    """Start `tokenspeed-run` on the plan with these words, warm it up, play the traffic to it, and stop it; `paced`: over an
    engine without a machine. Raises RuntimeError when it does not start, and SystemExit with what the client said when that
    fails."""
    start = time.monotonic()
    with Server([str(plan), *words], os.environ, *([(_PACED,)] if paced else [])) as server:
        server.wait_ready()
        ready = time.monotonic()
        if traffic.warm_up_turns:
            replay(server.url, traffic.warm_up_words(), folder / f"{name}.warm-up.json")
        warm, at = time.monotonic(), http_stream.Server.parse(server.url)
        before = asyncio.run(counters(at))
        path = folder / f"{name}.measured.json"
        replay(server.url, traffic.words(), path)
        after = asyncio.run(counters(at))
        found = constants(asyncio.run(probe(at, traffic.max_context)), Constants())
        server.stop()
    report = msgspec.json.decode(path.read_bytes(), type=ReplayReport)
    used = {counter: value - before.get(counter, 0.0) for counter, value in after.items()}
    served = Served(report, used, found, ready - start, warm - ready)
    return replace(served, constants=replace(found, host_seconds=served.host_seconds(found.host_token_seconds)))


def replay(url: str, words: Sequence[str], report: Path) -> None:
    """`tokenspeed-bench replay` in a process of its own. Raises SystemExit with what it said when it fails."""
    command = [sys.executable, "-c", _BENCH, "replay", "--url", url, *words, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"tokenspeed-bench replay: exit code {done.returncode}\n{done.stderr[-2000:]}")
