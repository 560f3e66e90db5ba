"""The first rank's watch over the others: which of them ended, is silent, or is behind in a step that takes too long."""

from __future__ import annotations

import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .device.errors import DeviceLost
from .heartbeats import Beat, Hello, Line, Progress, interval

LOOPBACK = "127.0.0.1"
_LAST_WORDS_SECONDS = 2.0
_GOODBYE_SECONDS = 10.0


class RanksLost(DeviceLost):
    """The ranks do not meet any more: one is gone, or hangs."""


@dataclass
class _Peer:
    line: Line
    beat: Beat = field(default_factory=Beat)


class RankWatch:
    """Watches ranks 1 to `count` - 1, which connect to `address`; `lost` is called once, in the watch's own thread.

    A rank is lost when its connection ends, when it says nothing for `timeout` seconds, or when a step takes longer than that.
    `exit_code(rank)` may know how the process of a rank ended (None: it does not). `everywhere` lets other hosts connect.
    """

    def __init__(
        self,
        count: int,
        timeout: float,
        lost: Callable[[RanksLost], None],
        exit_code: Callable[[int], int | None] = lambda _rank: None,
        *,
        everywhere: bool = False,
    ) -> None:
        self.progress = Progress()
        self._count, self._timeout, self._lost, self._exit_code = count, timeout, lost, exit_code
        self._token = secrets.token_hex(16)
        self._peers: dict[int, _Peer] = {}
        self._ending = threading.Event()
        self._settled = threading.Event()
        self._server = _everywhere() if everywhere else socket.create_server((LOOPBACK, 0))
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """port/token, for the other ranks' eyes only."""
        return f"{self._server.getsockname()[1]}/{self._token}"

    def knows(self, rank: int) -> bool:
        """Whether a rank is connected, or was: its end is noticed here."""
        return rank in self._peers

    def blame(self, error: RuntimeError) -> RanksLost:
        """What to say of an error in which ranks did not meet, after time for the watch to find out who is gone and tell it."""
        self._settled.wait(_LAST_WORDS_SECONDS)
        got = str(error).splitlines()[0] if str(error) else type(error).__name__
        return self._behind(self.progress.last, got)

    def close(self) -> None:
        """The others were told to stop: wait for them to say goodbye."""
        self.ends()
        self._thread.join(_GOODBYE_SECONDS)

    def ends(self) -> None:
        """The others are about to be told to stop; what they do from now on is no loss."""
        self._ending.set()
        self._wake.close()

    def _run(self) -> None:
        every = interval(self._timeout)
        with selectors.DefaultSelector() as selector, self._server, self._woken:
            self._server.setblocking(False)
            selector.register(self._server, selectors.EVENT_READ, None)
            selector.register(self._woken, selectors.EVENT_READ, None)
            next_beat = time.monotonic()
            while len(selector.get_map()) > 1 or not self._ending.is_set():
                for key, _ in selector.select(max(0.0, next_beat - time.monotonic())):
                    if key.fileobj is self._woken:
                        selector.unregister(key.fileobj)
                    elif key.data is None:
                        connection, _ = self._server.accept()
                        line = Line(connection)
                        selector.register(connection, selectors.EVENT_READ, line)
                    elif not self._take(key.data):
                        selector.unregister(key.fileobj)
                        key.data.close()
                        self._ended(key.data)
                if time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + every
                    self._beat()
                    self._judge()

    def _take(self, line: Line) -> bool:
        """False when the connection is to be closed."""
        said = line.receive()
        if said is None:
            return False
        for word in said:
            peer = self._peer(line)
            if isinstance(word, Beat) and peer is not None:
                self._peers[peer].beat = word
            elif isinstance(word, Hello) and secrets.compare_digest(word.token, self._token) and word.rank < self._count:
                self._peers[word.rank] = _Peer(line)
            else:
                return False
        return True

    def _peer(self, line: Line) -> int | None:
        return next((rank for rank, peer in self._peers.items() if peer.line is line), None)

    def _beat(self) -> None:
        for peer in self._peers.values():
            peer.line.send(Beat(self.progress.last))

    def _ended(self, line: Line) -> None:
        rank = self._peer(line)
        if rank is None or self._ending.is_set():
            return
        code, beat = self._exit_code(rank), self._peers[rank].beat
        how = f"rank {rank} ended" + ("" if code is None else f" with exit code {code}")
        self._tell(
            RanksLost(how, where=self._place(rank), got=beat.error, fix="look at that rank's own messages, then start again")
        )

    def _judge(self) -> None:
        if self._ending.is_set():
            return
        silent = {rank: peer.line.silent for rank, peer in self._peers.items() if peer.line.silent > self._timeout}
        if silent:
            names = ", ".join(f"rank {rank}" for rank in silent)
            self._tell(
                RanksLost(
                    f"{names} hangs: no sign of life for {max(silent.values()):.0f} s",
                    where=", ".join(map(self._place, silent)),
                    expected=f"a word every second, at most {self._timeout:g} s apart (--step-timeout)",
                    fix="look at that process and its host, then start again",
                )
            )
            return
        step, seconds = self.progress.stuck()
        if seconds > self._timeout:
            self._tell(self._behind(step, f"{seconds:.0f} s"))

    def _behind(self, step: int, got: str) -> RanksLost:
        """Who holds up a step: ranks that have not begun it; where all have, it is not known."""
        late = [rank for rank, peer in self._peers.items() if peer.beat.began < step] or [0, *self._peers]
        return RanksLost(
            f"the ranks do not meet any more in step {step}: one is gone, or hangs",
            where=", ".join(map(self._place, late)),
            expected=f"a step within {self._timeout:g} s (--step-timeout)",
            got=got,
            fix="look at those ranks' own messages, then start again; or give a longer --step-timeout where steps take that long",
        )

    def _place(self, rank: int) -> str:
        last = self._peers[rank].beat.began if rank else self.progress.last
        return f"rank {rank} (last step {'none' if last < 0 else last})"

    def _tell(self, error: RanksLost) -> None:
        self._ending.set()
        self._settled.set()
        for peer in self._peers.values():
            peer.line.send(Beat(error=str(error).replace("\n", "; ")))
        self._lost(error)


def _everywhere() -> socket.socket:
    """On all addresses of this host: which of them others see it by is known to the launcher alone."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
