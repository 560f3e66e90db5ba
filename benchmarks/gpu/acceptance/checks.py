"""The checks, in order: each is given the setting and gives back what it measured, or raises Failed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenspeed.plans.device_library import library_functions
from tokenspeed.plans.reader import Plan
from tokenspeed.runtime.device.device import Device

from .bare_world import bare_environment
from .server import RUN, Answer, Server

Figures = dict[str, Any]
_STOP_WITHIN, _FAIL_WITHIN = 10.0, 20.0
_MEMORY_SHARE = 0.01
_HERE = Path(__file__).parent


class Failed(Exception):
    """A check did not hold; the message says how."""


@dataclass
class Setting:
    """The plan, its weights, a folder for what is written meanwhile, and the device as this process sees it."""

    path: str
    plan: Plan
    weights: str
    folder: Path
    device: Device

    @property
    def environment(self) -> dict[str, str]:
        """Of processes without compilers; without torch too, unless the plan calls functions of it."""
        programs = [self.plan.program(item.name) for item in self.plan.manifest.programs]
        return bare_environment(self.folder / "bare", () if library_functions(programs) else ("torch",))

    @property
    def output(self) -> int:
        """Tokens that are asked for."""
        return min(40, self.plan.manifest.model.max_context // 2)

    def free(self) -> int:
        with self.device:
            return self.device.memory()[0]

    def prompts(self, count: int) -> list[list[int]]:
        random = np.random.default_rng(3)
        length = min(200, self.plan.manifest.model.max_context - self.output)
        return random.integers(0, self.plan.manifest.model.vocabulary, (count, length)).tolist()


def serves_without_compilers(setting: Setting) -> Figures:
    """Goldens, traffic, refused requests, memory and the end, of one server that finds no compiler and no PATH."""
    manifest, before = setting.plan.manifest, setting.free()
    with Server([setting.path, "--weights", setting.weights, "--verify"], setting.environment) as server:
        server.wait_ready()
        count = min(2 * manifest.schedule.max_sequences, 64)
        answers = _ask(server, setting.prompts(count), setting.output)
        _require(all(_whole(answer, setting.output) for answer in answers), f"{count} whole answers", _shown(answers))
        wrong = server.complete([1, manifest.model.vocabulary, 2], 4)
        _require(wrong.status == 400, "status 400 for a token outside of the vocabulary", f"{wrong.status} {wrong.error}")
        blocked = [name for name in server.modules() if any(word in name for word in ("triton", "libLLVM", "nvrtc"))]
        _require(not blocked, "no compiler in the process", str(blocked[:3]))
        memory = _memory(setting, before - setting.free())
        second = _refused_second(setting) if setting.free() < manifest.memory.total - manifest.memory.overhead else {}
        start = time.monotonic()
        code, seconds = server.stop(), time.monotonic() - start
        _require(code == 0 and seconds < _STOP_WITHIN, f"exit code 0 within {_STOP_WITHIN:g} s", f"{code} after {seconds:.1f} s")
        _require(not server.said, "nothing on standard error", server.said[:300])
        startup = {"startup_seconds": server.startup["startup_seconds"], "total_seconds": server.startup["total_seconds"]}
    return {"answers": count, **startup, **memory, **second, "stop_seconds": round(seconds, 2)}


def rows_that_are_no_numbers(setting: Setting) -> Figures:
    """NaN in some requests' rows and in unused memory."""
    command = [sys.executable, str(_HERE / "not_finite.py"), setting.path, setting.weights]
    done = subprocess.run(command, capture_output=True, env=setting.environment, timeout=200, check=False)
    _require(done.returncode == 0, "exit code 0", f"{done.returncode}: {done.stderr.decode(errors='replace')[-600:]}")
    found = json.loads(done.stdout)
    if "skipped" not in found:
        sound = found["bad"] > 0 and not found["wrong"] and not found["failure"]
        _require(sound, "errors for those requests alone", str(found)[:600])
        _require("not finite" in found["said"], "a message that says what was wrong", found["said"])
    return found


def a_lost_device(setting: Setting) -> Figures:
    """A kernel faults while requests are answered."""
    script = (str(_HERE / "broken_server.py"),)
    with Server([setting.path, "--weights", setting.weights], setting.environment, script) as server:
        server.wait_ready()
        start = time.monotonic()
        answers = _ask(server, setting.prompts(8), setting.plan.manifest.model.max_context // 2)
        seconds = time.monotonic() - start
        _require(seconds < _FAIL_WITHIN, f"every request ends within {_FAIL_WITHIN:g} s", f"{seconds:.1f} s")
        _require(all(answer.error and (answer.done or answer.status == 500) for answer in answers), "errors", _shown(answers))
        status, health = server.get("/health")
        _require(status == 503, "status 503 of /health", f"{status} {health}")
        late = server.complete([1, 2, 3], 2)
        _require(late.status == 500, "status 500 for what comes later", f"{late.status} {late.error}")
        _require(server.runs, "a server that still answers", "it ended")
        code = server.stop()
        _require(code is not None, f"an end within {_STOP_WITHIN:g} s", "none")
        said = server.said
        _require("the engine failed" in said and "Traceback" not in said, "what happened, without a stack trace", said[:600])
    return {"seconds": round(seconds, 2), "error": answers[0].error, "health": health, "exit_code": code, "said": said[:300]}


CHECKS: dict[str, Callable[[Setting], Figures]] = {
    "serving": serves_without_compilers,
    "not finite": rows_that_are_no_numbers,
    "lost device": a_lost_device,
}


def gives_memory_back(setting: Setting, before: int) -> Figures:
    """After all of them, the device has as much free memory as before."""
    for _ in range(20):
        if before - setting.free() < 64 << 20:
            break
        time.sleep(0.25)
    _require(before - setting.free() < 64 << 20, "no memory still taken", f"{before - setting.free()} bytes")
    return {"free": setting.free()}


def _memory(setting: Setting, taken: int) -> Figures:
    """What the device lost to the server, its context and its code included, beside what the plan says."""
    plan = setting.plan.manifest.memory
    beside = taken - (plan.total - plan.overhead)
    figures = {"memory_taken": taken, "memory_planned": plan.total, "reserve": plan.overhead, "reserve_taken": beside}
    _require(abs(taken - plan.total) <= _MEMORY_SHARE * plan.total, "memory within 1 % of the plan", str(figures))
    _require(beside <= plan.overhead, "context and code within the reserve", str(figures))
    return figures


def _refused_second(setting: Setting) -> Figures:
    """A second server finds too little memory, and says so."""
    start = time.monotonic()
    command = [sys.executable, "-c", RUN, setting.path, "--weights", setting.weights, "--port", "0"]
    done = subprocess.run(command, capture_output=True, env=setting.environment, timeout=60, check=False)
    said = done.stderr.decode(errors="replace")
    refused = done.returncode == 7 and "more device memory than is free" in said
    _require(refused, "exit code 7", f"{done.returncode}: {said[:300]}")
    return {"second_refused_seconds": round(time.monotonic() - start, 2)}


def _ask(server: Server, prompts: Sequence[list[int]], count: int) -> list[Answer]:
    """All at once."""
    together = threading.Barrier(len(prompts))

    def ask(prompt: list[int]) -> Answer:
        together.wait()
        return server.complete(prompt, count)

    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(ask, prompts))


def _whole(answer: Answer, count: int) -> bool:
    return not answer.error and answer.done and answer.finish_reason == "length" and len(answer.tokens) == count


def _shown(answers: Sequence[Answer]) -> str:
    return str([f"{answer.status}, {len(answer.tokens)} tokens, {answer.error!r}" for answer in answers])[:400]


def _require(condition: bool, expected: str, got: str) -> None:
    if not condition:
        raise Failed(f"expected {expected}, got {got}")
