"""A rank's side of the first rank's watch (runtime/rank_watch.py), which it watches in turn."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable

from .heartbeats import Beat, Hello, Line, interval

_CONNECT_SECONDS = 60.0


class WatchedRank:
    """Tells the first rank that this one is alive. `gone` is called, in a thread of its own, when the first one is not, in words.

    `address` is that of the watch (port/token), `host` where the first rank runs.
    """

    def __init__(self, rank: int, host: str, address: str, timeout: float, gone: Callable[[str], None]) -> None:
        port, _, token = address.partition("/")
        self._last = -1
        self._timeout, self._gone = timeout, gone
        self._line = Line(socket.create_connection((host, int(port)), _CONNECT_SECONDS))
        self._ending = False
        self._line.send(Hello(rank, token))
        threading.Thread(target=self._run, name="first rank watch", daemon=True).start()

    def began(self, step: int) -> None:
        self._last = step
        self._line.send(Beat(step))

    def failed(self, error: str) -> None:
        """Let the first rank say why this one ends."""
        self._ending = True
        self._line.send(Beat(self._last, error))

    def close(self) -> None:
        self._ending = True
        self._line.connection.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        every, why = interval(self._timeout), ""
        while True:
            self._line.send(Beat(self._last))
            ready, _, _ = select.select([self._line.connection], [], [], every)
            came = self._line.receive() if ready else []
            if self._ending:
                return
            if came is None:
                self._gone(f"the first rank has ended; {why or 'its last words are not known'}")
                return
            why = next((beat.error for beat in came if isinstance(beat, Beat) and beat.error), why)
            if self._line.silent > self._timeout:
                self._gone(f"the first rank hangs: no sign of life for {self._line.silent:.0f} s")
                return
