"""One arm as a process: asked over its standard streams, stopped while others run, its memory and waits read from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tokenspeed.plans.errors import TokenspeedError

LIMIT_SECONDS = 600.0

Answer = dict[str, Any]


class ArmFailed(TokenspeedError):
    """An arm's program gave an error, ended or did not answer."""


class ArmProcess:
    """A started program that speaks lines of JSON. Whatever goes wrong is an ArmFailed with the program's own words."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        self._errors: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to one request; the process may only run meanwhile."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        limit = threading.Timer(LIMIT_SECONDS, self._process.kill)
        limit.start()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        finally:
            limit.cancel()
        if not line:
            code = self._process.wait()
            raise ArmFailed("The program ended.", got=f"exit code {code}: {self._last_words()}")
        self._process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise ArmFailed("The program refused.", where=str(request.get("do", "")), got=answer["error"])
        return answer

    def waited_seconds(self) -> float:
        """How long its threads were ready to run and had no core, all together, so far (Linux schedstat; 0 elsewhere)."""
        waits = 0
        for path in Path(f"/proc/{self._process.pid}/task").glob("*/schedstat"):
            try:
                waits += int(path.read_text().split()[1])
            except (OSError, IndexError, ValueError):  # the thread has ended
                continue
        return waits / 1e9

    def peak_memory_bytes(self) -> int | None:
        """Its largest resident set, mapped files included; None where the system does not say."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:
            return None
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        return None if line is None else int(line.split()[1]) * 1024

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # a request that it never read
            self._process.stdin.close()
        self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        self._errors.flush()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def start(command: Sequence[str], log: Path, load: Answer, prompt_tokens: int) -> tuple[ArmProcess, Answer, float]:
    """A loaded arm, its answer to "load", and the seconds from the start of its process to the first token of a prompt."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    arm = ArmProcess(command, log)
    try:
        loaded = arm.ask(do="load", **load)
        arm.ask(do="prefill", tokens=prompt_tokens)
        return arm, loaded, time.perf_counter() - started
    except BaseException:
        arm.close()
        raise
