"""What ranks tell each other beside steps: that they are alive, and which step they are at. No torch here.

Each rank other than the first holds a connection to it, over which both sides say so every second, and the rank with each step
too, as lines of JSON. A connection that ends is a process that ended; silence is a process that is stopped, or a host that is
gone. No step waits for it.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import msgspec

_MOST_LINE_BYTES = 1 << 16


def interval(timeout: float) -> float:
    """Seconds between two words of a rank whose silence of `timeout` seconds counts as its end."""
    return min(1.0, timeout / 4)


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First line of a rank: who it is, and the word that only ranks of this plan were told."""

    rank: int
    token: str


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The step that was begun last, -1: none; `error` is why the rank ends now."""

    began: int = -1
    error: str = ""


class Progress:
    """Which steps the first rank is at. Written by the threads that run them, read by any."""

    def __init__(self) -> None:
        self.last = -1
        self._running: dict[int, float] = {}
        self._ended_at = time.monotonic()

    def began(self, step: int) -> None:
        self._running[step] = time.monotonic()
        self.last = step

    def ended(self, step: int) -> None:
        self._running.pop(step, None)
        self._ended_at = time.monotonic()

    def stuck(self) -> tuple[int, float]:
        """The oldest step that runs and for how many seconds it has, since the one ahead of it ended; (-1, 0) when none does."""
        running = list(self._running.items())
        if not running:
            return -1, 0.0
        step, since = running[0]
        return step, time.monotonic() - max(since, self._ended_at)


class Line:
    """One end of a connection. `receive` from one thread, `send` from any."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.heard = time.monotonic()
        self._rest = b""

    @property
    def silent(self) -> float:
        """Seconds since the other side was heard last."""
        return time.monotonic() - self.heard

    def send(self, said: Hello | Beat) -> None:
        """What does not fit the connection's buffer is dropped: the other side has not read for long."""
        with suppress(OSError):
            self.connection.send(msgspec.json.encode(said) + b"\n")

    def receive(self) -> list[Hello | Beat] | None:
        """What has come; None when the other side ended, or says what no rank would."""
        try:
            came = self.connection.recv(_MOST_LINE_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not came:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + came).split(b"\n")
        if len(self._rest) > _MOST_LINE_BYTES:
            return None
        try:
            return [msgspec.json.decode(line, type=Hello | Beat) for line in lines]
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def close(self) -> None:
        self.connection.close()
