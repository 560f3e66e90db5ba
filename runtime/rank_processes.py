"""The other ranks of a plan on this host: started, watched and ended by the first."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec

_EXIT_SECONDS = 10.0
_ENDING_SECONDS = 1.0


class RankProcesses:
    """Processes of ranks 1 and up. `lost(rank, exit code)` is called, in a thread of its own, when one ends unasked.

    `options` are `RankOptions` but for the number and the address.
    """

    def __init__(self, count: int, options: dict[str, object], lost: Callable[[int, int], None]) -> None:
        self.address = _free_address()
        self._ending = False
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, count):
            arguments = msgspec.json.encode(options | {"rank": rank, "address": self.address}).decode()
            command = [sys.executable, "-P", "-m", "tokenspeed.runtime.rank_process", arguments]
            self._processes[rank] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, start_new_session=True)
            threading.Thread(target=self._watch, args=(rank, lost), name=f"rank {rank} watch", daemon=True).start()

    def exit_code(self, rank: int) -> int | None:
        """How a rank ended that is known to end; None when it does not within a second."""
        with suppress(subprocess.TimeoutExpired):
            return self._processes[rank].wait(_ENDING_SECONDS)
        return None

    def kill(self) -> None:
        """All at once, stopped ones too."""
        self._ending = True
        for process in self._processes.values():
            process.kill()

    def close(self) -> None:
        """Wait for their end, which they were told of; kill those that do not come to it."""
        self._ending = True
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_EXIT_SECONDS)
            process.kill()

    def _watch(self, rank: int, lost: Callable[[int, int], None]) -> None:
        code = self._processes[rank].wait()
        if not self._ending:
            lost(rank, code)


def _free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{found.getsockname()[1]}"
