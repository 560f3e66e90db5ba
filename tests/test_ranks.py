"""Acceptance: plans over several ranks, each a process, give transformers' logits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from tokenspeed.compiler.frontends.source import open_model
from tokenspeed.compiler.options import CompileOptions
from tokenspeed.compiler.pipeline import compile_model
from tokenspeed.ir.module import context
from tokenspeed.passes.placing.pins import Pin
from tokenspeed.passes.schedule import TrafficProfile
from tokenspeed.plans.writer import write_plan

from .test_families import ALL_KINDS, BLOCKS_PER_SEQUENCE, CHUNK, CONTEXT, SEQUENCES, TOLERANCE
from .tiny_models import FAMILIES, MIXTURES, MORE_FAMILIES, build, remember_traces, save

CHOSEN = {2: ("phi3", "deepseek_v3"), 4: ("llama", "gpt_oss")}
"""By ranks: packed projections, latents; tied embeddings, biases and sinks and experts, heads in copies."""

SERVE = "from tokenspeed.runtime.run_cli import main; main()"


def compiled(directory: Path, ranks: int) -> Path:
    """A plan in which whatever can be cut is: models this small would be replicated."""
    options = CompileOptions(
        dtype="f32",
        max_context=CONTEXT,
        max_sequences=SEQUENCES,
        prefill_chunk=CHUNK,
        traffic=TrafficProfile(prompt_tokens=CONTEXT, output_tokens=CONTEXT),
        parallel=f"tp={ranks}",
        placement=(Pin("*", "cut"),),
    )
    with context():
        state = compile_model(open_model(directory), options, lambda _phase, _state: None)
    assert state.manifest is not None
    path = directory.parent / f"{directory.name}.tp{ranks}.bin"
    write_plan(path, state.manifest, state.entries)
    return path


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For two ranks; its weights lie beside it."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        return compiled(save(build(FAMILIES["llama"]), folder / "model"), 2)


@dataclass
class Server:
    """A plan that is served; `engine` is the first rank's process, `rank` the other's."""

    url: str
    log: Path
    engine: int
    rank: int

    @property
    def is_healthy(self) -> bool:
        return httpx.get(f"{self.url.removesuffix('/v1')}/health").status_code == 200

    def says(self, text: str) -> bool:
        return text in self.log.read_text()


@contextmanager
def served(plan: Path, *options: str) -> Iterator[Server]:
    log = plan.with_suffix(".log")
    command = [sys.executable, "-c", SERVE, str(plan), "--weights", str(plan.parent / "model"), "--port", "0", "--json", *options]
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until(lambda: '"url"' in log.read_text())
        told = json.loads(next(line for line in log.read_text().splitlines() if '"url"' in line))
        (engine,), (rank,) = processes(plan, "engine_process"), processes(plan, "rank_process")
        asked = {"model": told["model"], "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0}
        answer = httpx.post(f"{told['url']}/completions", json=asked, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 4, answer.text
        yield Server(told["url"], log, engine, rank)
        until(lambda: not processes(plan, "engine_process") and not processes(plan, "rank_process"))
    finally:
        server.kill()
        server.wait()


def test_a_rank_that_is_gone_ends_all(plan: Path) -> None:
    """Requests are answered until then; the message names the rank and its last step, and no process stays behind."""
    with served(plan) as server:
        os.kill(server.rank, signal.SIGKILL)
        until(lambda: server.says("rank 1 ended with exit code -9"))
        assert server.says("rank 1 (last step ") and not server.says("step none") and not server.is_healthy


def test_a_rank_that_hangs_ends_all(plan: Path) -> None:
    with served(plan, "--step-timeout", "4") as server:
        os.kill(server.rank, signal.SIGSTOP)
        until(lambda: server.says("rank 1 hangs: no sign of life for"))
        assert server.says("rank 1 (last step ") and not server.says("step none") and not server.is_healthy


def test_without_the_first_rank_the_others_end(plan: Path) -> None:
    with served(plan) as server:
        os.kill(server.engine, signal.SIGKILL)
        until(lambda: server.says("the engine process ended unexpectedly (signal 9)"))
        assert not server.is_healthy


def processes(plan: Path, module: str) -> list[int]:
    """Processes of a module of the runtime that run a plan."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if f"runtime.{module}".encode() in line and str(plan).encode() in line:
                found.append(int(folder.name))
    return found


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.parametrize("ranks", CHOSEN)
def test_logits_on_several_ranks(ranks: int, tmp_path: Path) -> None:
    tokens = np.random.default_rng(11).integers(0, 160, (6, CONTEXT), dtype=np.int32)
    steps = [[(key, start, tokens[key, start : start + count].tolist()) for key, start, count in step] for step in ALL_KINDS]
    models = {name: build({**FAMILIES, **MORE_FAMILIES, **MIXTURES}[name]) for name in CHOSEN[ranks]}
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        for number, (name, model) in enumerate(models.items()):
            directory = save(model, tmp_path / str(number))
            plans.append((name, str(compiled(directory, ranks)), str(directory)))
    out = tmp_path / "logits.npz"
    job = {"plans": plans, "steps": steps, "blocks_per_sequence": BLOCKS_PER_SEQUENCE, "address": free_address(), "out": str(out)}
    script = Path(__file__).with_name("ranked_logits.py")
    running = [
        subprocess.Popen([sys.executable, str(script), json.dumps(job | {"rank": rank})], stdin=subprocess.DEVNULL)
        for rank in range(ranks)
    ]
    assert [process.wait(timeout=300) for process in running] == [0] * ranks
    found = np.load(out)
    for name, model in models.items():
        lengths: dict[int, int] = {}
        for key, start, count in (part for step in ALL_KINDS for part in step):
            lengths[key] = max(lengths.get(key, 0), start + count)
        with torch.no_grad():
            expected = {
                key: model(input_ids=torch.from_numpy(tokens[key, :length].astype(np.int64))[None], use_cache=False).logits[0]
                for key, length in lengths.items()
            }
        for number, step in enumerate(ALL_KINDS):
            wanted = np.concatenate([expected[key][start : start + count].numpy() for key, start, count in step])
            worst = np.abs(found[f"{name}/{number}"] - wanted).max()
            assert worst <= TOLERANCE, f"{name}, step {number}: {worst}"
