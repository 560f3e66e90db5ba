"""Hosts for tests: network namespaces, which reach each other by one network only."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

_NETWORK = "10.213.77"


class Host:
    """Where processes run: as `prefix` says. All of them end with it."""

    def __init__(self, log: Path, prefix: Sequence[str] = (), address: str = "127.0.0.1") -> None:
        self.log, self.prefix, self.address = log, prefix, address
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        command = [*self.prefix, sys.executable, *map(str, arguments)]
        with self.log.open("ab") as file:
            made = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=os.environ | environment, start_new_session=True
            )
        self.processes.append(made)
        return made

    def output(self, program: str, *arguments: str) -> str:
        command = [*self.prefix, sys.executable, "-c", program, *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120).stdout.strip()

    def says(self, text: str) -> bool:
        return self.log.exists() and text in self.log.read_text()

    def end(self) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def two_hosts(folder: Path) -> Iterator[list[Host]]:
    """Namespaces with a cable between them; not known to each other by name. Skips the test where they cannot be made."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        pytest.skip("network namespaces take unshare, nsenter and ip")
    with ExitStack() as stack:
        pids = [stack.enter_context(_namespace()) for _ in range(2)]
        first, second = (f"ts{pid}" for pid in pids)
        _run("ip", "link", "add", first, "type", "veth", "peer", "name", second)
        hosts = []
        for number, (pid, link) in enumerate(zip(pids, (first, second), strict=True)):
            inside = ("nsenter", "--target", str(pid), "--net")
            address = f"{_NETWORK}.{number + 1}"
            _run("ip", "link", "set", link, "netns", str(pid))
            _run(*inside, "ip", "address", "add", f"{address}/24", "dev", link)
            _run(*inside, "ip", "link", "set", link, "up")
            _run(*inside, "ip", "link", "set", "lo", "up")
            hosts.append(Host(folder / f"log.{number}", inside, address))
            stack.callback(hosts[-1].end)
        yield hosts


@contextmanager
def _namespace() -> Iterator[int]:
    """A network namespace that lives as long as this: a process in it."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo; read _"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        if not holder.stdout.readline():
            pytest.skip("this machine does not let us make network namespaces")
        yield holder.pid  # it ends when its input does


def _run(*command: str) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"network namespaces cannot be joined here: {done.stderr.strip()}")
