"""One rank on a Ray cluster: the actor that looks after its process, and that process.

The process is `python -m tokenspeed.runtime.ray_rank PLAN OPTIONS`: tokenspeed-run as the rank that its environment says. It ends
with the actor. The actor itself computes nothing, so that it answers whatever the rank does.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from typing import IO, Any

from .parent_death import end_with_parent

_MOST_LINES = 10_000


class RankActor:
    """Made by Ray on the rank's host; calls come one at a time and never wait for the rank."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lines: deque[tuple[bool, str]] = deque(maxlen=_MOST_LINES)
        self._readers: list[threading.Thread] = []

    def place(self) -> tuple[str, str]:
        """Ray's name of the host, and its address."""
        ray: Any = importlib.import_module("ray")
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def free_port(self) -> int:
        with socket.socket() as found:
            found.bind(("", 0))
            return found.getsockname()[1]

    def start(self, arguments: list[str], environment: dict[str, str]) -> None:
        command = [sys.executable, "-P", "-m", "tokenspeed.runtime.ray_rank", *arguments]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment
        )
        assert self._process.stdout is not None and self._process.stderr is not None
        for stream, is_error in ((self._process.stdout, False), (self._process.stderr, True)):
            self._readers.append(threading.Thread(target=self._read, args=(stream, is_error), daemon=True))
            self._readers[-1].start()

    def news(self) -> tuple[int | None, list[tuple[bool, str]]]:
        """The exit code (None: it runs) and the lines since the last call, each with whether it is of standard error."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            for reader in self._readers:
                reader.join(1.0)
        return code, [self._lines.popleft() for _ in range(len(self._lines))]

    def stop(self) -> None:
        """Ask the rank to finish what runs, and to end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def _read(self, stream: IO[str], is_error: bool) -> None:
        for line in stream:
            self._lines.append((is_error, line.rstrip("\n")))


if __name__ == "__main__":
    end_with_parent()
    from .run_cli import main

    main()
