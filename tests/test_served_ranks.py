"""Acceptance: plans over several ranks are served on one host and on two, whoever starts the ranks, and end as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from .hosts import Host, two_hosts
from .test_ranks import compiled, free_address
from .tiny_models import FAMILIES, build, remember_traces, save

SERVE = "from tokenspeed.runtime.run_cli import main; main()"
ASK = """
import json, sys, urllib.request
url, asked = sys.argv[1], {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "return_token_ids": True}
asked["model"] = json.load(urllib.request.urlopen(url + "/v1/models"))["data"][0]["id"]
request = urllib.request.Request(url + "/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["usage"]["completion_tokens"])
"""
HEALTH = """
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1] + "/health").status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For two ranks; its weights lie beside it."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        return compiled(save(build(FAMILIES["llama"]), folder / "model"), "tp=2")


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
    with served(plan, "--verify") as server:
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


def test_steps_in_flight_through_stages(tmp_path: Path) -> None:
    """Sequences that run at the same time, in steps of their own, get the tokens that they get alone; a stage that is gone ends
    all."""
    model = build(FAMILIES["llama"])
    with pytest.MonkeyPatch.context() as patch:
        remember_traces(patch)
        plan = compiled(save(model, tmp_path / "model"), "pp=2")
    prompts = [[3 + (7 * number + at) % 150 for at in range(3 + 5 * number)] for number in range(6)]
    with served(plan) as server, ThreadPoolExecutor(len(prompts)) as threads:
        found = list(threads.map(lambda prompt: greedy(server.url, prompt), prompts))
        for prompt, tokens in zip(prompts, found, strict=True):
            with torch.no_grad():  # each is the likeliest after all before it
                logits = model(input_ids=torch.tensor([prompt + tokens[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :]
            assert len(tokens) == 12 and tokens == logits.argmax(-1).tolist()
        os.kill(server.rank, signal.SIGKILL)
        until(lambda: server.says("rank 1 ended with exit code -9"))


def greedy(url: str, prompt: list[int]) -> list[int]:
    name = httpx.get(f"{url}/models").json()["data"][0]["id"]
    asked = {"model": name, "prompt": prompt, "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    return httpx.post(f"{url}/completions", json=asked, timeout=60).json()["choices"][0]["token_ids"]


def test_torchrun_on_two_hosts(plan: Path, tmp_path: Path) -> None:
    """The first rank notices that the process on the other host is gone."""
    with two_hosts(tmp_path) as hosts:
        first, second = hosts
        served = ("-m", "tokenspeed.runtime", plan, "--weights", plan.parent / "model", "--host", first.address, "--port", "8001")
        where = ("--nnodes", 2, "--nproc-per-node", 1, "--master-addr", first.address, "--master-port", "29500")
        for number, host in enumerate(hosts):
            host.start("-m", "torch.distributed.run", *where, "--node-rank", number, *served)
        until(lambda: first.says("is served at"))
        url = f"http://{first.address}:8001"
        assert first.output(ASK, url) == "4"
        (rank,) = children(second.processes[0].pid)  # nsenter has become torchrun
        os.kill(rank, signal.SIGKILL)
        until(lambda: first.says("rank 1 ended"))
        assert first.says("rank 1 (last step ") and first.output(HEALTH, url) == "503"
    until(lambda: not processes(plan))  # its torchrun was killed


def test_processes_of_another_launcher(plan: Path, tmp_path: Path) -> None:
    """What Slurm or a shell script does: nothing but the environment says who is who."""
    hosts = [Host(tmp_path / f"log.{number}") for number in range(2)]
    (address, _, port), served = free_address().partition(":"), free_address().partition(":")[2]
    said = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port}
    command = ("-m", "tokenspeed.runtime", plan, "--weights", plan.parent / "model", "--port", served)
    try:
        started = [host.start(*command, **said, RANK=str(number)) for number, host in enumerate(hosts)]
        until(lambda: hosts[0].says("is served at"))
        assert hosts[0].output(ASK, f"http://127.0.0.1:{served}") == "4"
        started[0].send_signal(signal.SIGTERM)
        assert [process.wait(60) for process in started] == [0, 0], hosts[1].log.read_text()
    finally:
        for host in hosts:
            host.end()


def test_ray(plan: Path, tmp_path: Path) -> None:
    """On a cluster of this machine alone; when a rank is gone, all ends with its name."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    host, port = Host(tmp_path / "log"), free_address().partition(":")[2]
    try:
        weights = ("--weights", plan.parent / "model")
        driver = host.start("-c", SERVE, plan, *weights, "--port", port, "--ray", RAY_ADDRESS="local")
        until(lambda: host.says("is served at"))
        assert host.output(ASK, f"http://127.0.0.1:{port}") == "4"
        (rank,) = [found for found in processes(plan, "ray_rank") if b"\0RANK=1\0" in Path(f"/proc/{found}/environ").read_bytes()]
        os.kill(rank, signal.SIGKILL)
        assert driver.wait(60) == 9
        assert host.says("rank 1 ended with exit code -9") and host.says("rank 1 (last step ")
        until(lambda: not processes(plan, "ray_rank") and not processes(plan, "engine_process"))
    finally:
        host.end()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def processes(plan: Path, module: str = "") -> list[int]:
    """Processes of a module of the runtime that run a plan, or all that are told its path."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes()
            if (not module or f"runtime.{module}".encode() in line) and str(plan).encode() in line:
                found.append(int(folder.name))
    return found


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
