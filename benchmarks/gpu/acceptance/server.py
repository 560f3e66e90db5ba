"""A server process: started, asked, stopped; nothing here waits for ever."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

START_SECONDS, STOP_SECONDS = 300.0, 20.0
RUN = "from tokenspeed.runtime.run_cli import main; main()"


class Server:
    """`tokenspeed-run` with `arguments` (or what `script` makes of them) in its own process. Use it as a context."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], script: Sequence[str] = ("-c", RUN)) -> None:
        command = [sys.executable, *script, *arguments, "--port", "0", "--json"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment))
        self._said: list[bytes] = []
        self._lines: SimpleQueue[bytes] = SimpleQueue()
        self._listeners = [threading.Thread(target=self._listen, args=(name,), daemon=True) for name in ("stdout", "stderr")]
        for listener in self._listeners:
            listener.start()
        self.url = ""
        self.startup: dict[str, Any] = {}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        """Return when it serves. Raises RuntimeError with what it said when it does not."""
        line, stop = b"", time.monotonic() + seconds
        while not line and time.monotonic() < stop and (self.runs or not self._lines.empty()):
            with suppress(Empty):
                line = self._lines.get(timeout=0.1)
        if not line:
            code = self.wait(0.1)
            raise RuntimeError(f"the server did not start: exit code {code}, {self.said[-800:]}")
        self.startup = json.loads(line)
        self.url = self.startup["url"].removesuffix("/v1")

    @property
    def said(self) -> str:
        """What it wrote on standard error."""
        return b"".join(self._said).decode(errors="replace")

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def modules(self) -> set[str]:
        """Files that it and its engine have mapped."""
        return {line.split(maxsplit=5)[-1] for pid in self._family() for line in _lines(f"/proc/{pid}/maps") if "/" in line}

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None when it still runs after so long."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        for listener in self._listeners:
            listener.join(2)
        return code

    def stop(self) -> int | None:
        """Ask it to end."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(STOP_SECONDS)

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def complete(self, tokens: Sequence[int], count: int, seconds: float = 120.0) -> Answer:
        """A streamed completion of `tokens` by `count` tokens."""
        body = {"prompt": list(tokens), "max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
        body |= {"return_token_ids": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(
            self.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = Answer()
        try:
            with urllib.request.urlopen(request, timeout=seconds) as lines:
                for line in lines:
                    answer.take(line)
        except urllib.error.HTTPError as error:
            answer.status, answer.error = error.code, error.read().decode(errors="replace")[:300]
        except OSError as error:
            answer.error = f"{type(error).__name__}: {error}"
        return answer

    def _family(self) -> list[int]:
        pid = self._process.pid
        children = [int(child) for line in _lines(f"/proc/{pid}/task/{pid}/children") for child in line.split()]
        return [pid, *children]

    def _listen(self, name: str) -> None:
        pipe = getattr(self._process, name)
        for line in iter(pipe.readline, b""):
            if name == "stdout":
                self._lines.put(line)
            else:
                self._said.append(line)


@dataclass
class Answer:
    """What came of a request: tokens, how it ended ("" when it did not), the error if there was one, and the status."""

    status: int = 200
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""
    done: bool = False

    def take(self, line: bytes) -> None:
        """A line of the stream."""
        if not line.startswith(b"data: "):
            return
        data = line[6:].strip()
        if data == b"[DONE]":
            self.done = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]["message"]
        for choice in event.get("choices", ()):
            self.tokens += choice.get("token_ids") or ()
            self.finish_reason = choice.get("finish_reason") or self.finish_reason


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(errors="replace").splitlines() if file.exists() else []
