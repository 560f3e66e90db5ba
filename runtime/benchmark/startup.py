"""From the start of a process to its first token: `tokenspeed-run PLAN --prompt ...` as users start it, watched from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...plans.errors import TokenspeedError
from .environment import Environment, environment
from .statistics import Summary, summarise

TIME_LIMIT_SECONDS = 900.0
_COMMAND = "from tokenspeed.runtime.run_cli import main; main()"
_PHASE = re.compile(r"([a-z][a-z ]*) (\d+\.\d+)")
_READ_BYTES = 65536


class StartupFailed(TokenspeedError):
    """tokenspeed-run did not print a token."""


@dataclass(frozen=True)
class StartupOptions:
    plan: Path
    weights: str | None
    threads: int | None
    prompt: str
    repeats: int
    evict: bool = True


class Start(msgspec.Struct, frozen=True):
    """`first_token_seconds` is from the start of the process to its first byte of generated text. `phases` are as the process
    told them: its own, and the engine's ("engine: ..."), which load side by side."""

    first_token_seconds: float
    phases: dict[str, float]

    @property
    def beside_weights_seconds(self) -> float:
        return self.first_token_seconds - self.phases.get("engine: weights", 0.0)


class StartupReport(msgspec.Struct, frozen=True):
    """`first` comes after plan and weights were dropped from the page cache, if `evicted`; `warm` are those that follow."""

    environment: Environment
    evicted: bool
    first: Start
    warm: list[Start]
    first_token_seconds: Summary
    beside_weights_seconds: Summary


def measure_startup(options: StartupOptions, say: Callable[[str], None]) -> StartupReport:
    """`options.repeats` warm starts after a first one. Raises StartupFailed with what the process said."""
    surroundings = environment()
    evicted = options.evict and False not in {drop_from_page_cache(path) for path in _files(options)}
    say("first start")
    first = start_once(options)
    warm = []
    for number in range(options.repeats):
        say(f"warm start {number + 1} of {options.repeats}")
        warm.append(start_once(options))
    return StartupReport(
        environment=surroundings,
        evicted=evicted,
        first=first,
        warm=warm,
        first_token_seconds=summarise([start.first_token_seconds for start in warm]),
        beside_weights_seconds=summarise([start.beside_weights_seconds for start in warm]),
    )


def start_once(options: StartupOptions) -> Start:
    command = [sys.executable, "-P", "-c", _COMMAND, str(options.plan), "--prompt", options.prompt, "--max-tokens", "1"]
    command += ["--weights", options.weights] if options.weights else []
    command += ["--threads", str(options.threads)] if options.threads else []
    started = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    limit = threading.Timer(TIME_LIMIT_SECONDS, process.kill)
    limit.start()
    said: list[bytes] = []
    assert process.stdout is not None and process.stderr is not None
    listener = threading.Thread(target=_listen, args=(process.stderr.fileno(), said))
    listener.start()
    try:
        first = os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - started
        while os.read(process.stdout.fileno(), _READ_BYTES):
            pass
        code = process.wait()
    finally:
        limit.cancel()
        process.kill()
        listener.join()
        process.stdout.close()
        process.stderr.close()
    text = b"".join(said).decode(errors="replace")
    if code or not first:
        raise StartupFailed("tokenspeed-run ended without a token.", got=f"exit code {code}: {text.strip()[-500:]}")
    return Start(seconds, parse_phases(text))


def parse_phases(text: str) -> dict[str, float]:
    """Of "start-up 1.50 s: imports 0.20, plan checks 0.01; engine: imports 0.90, weights 0.30" the seconds by phase, the
    engine's with "engine: " in front. Empty when there is no such line."""
    line = next((line for line in text.splitlines() if line.startswith("start-up ")), "")
    own, _, engine = line.partition(": ")[2].partition("; engine: ")
    return dict(_phases(own, "")) | dict(_phases(engine, "engine: "))


def drop_from_page_cache(path: Path) -> bool:
    """Ask the system to forget a file's clean pages. False where it cannot be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    return True


def _phases(text: str, prefix: str) -> Iterator[tuple[str, float]]:
    for name, seconds in _PHASE.findall(text):
        yield prefix + name.strip(), float(seconds)


def _files(options: StartupOptions) -> Iterator[Path]:
    yield options.plan
    weights = Path(options.weights) if options.weights else None
    if weights is not None and weights.is_dir():
        yield from sorted(path for path in weights.iterdir() if path.is_file())
    elif weights is not None and weights.is_file():
        yield weights


def _listen(descriptor: int, said: list[bytes]) -> None:
    while part := os.read(descriptor, _READ_BYTES):
        said.append(part)
