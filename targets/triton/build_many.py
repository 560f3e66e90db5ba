"""Builds many launches, some in processes beside this one: Triton works under Python's lock most of the time.

What is built does not depend on how many processes there are. A process that fails leaves its launches to this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import IO, get_type_hints

import msgspec

from ...plans.device_kernels import DeviceKernel
from ...plans.errors import ModelError
from ..accelerator import Accelerator
from .build import build, code_key
from .kernel import Launch

Built = tuple[DeviceKernel, bytes] | None
"""A kernel and its binary; None where it does not fit the accelerator."""

_KINDS_OF_A_PROCESS = 16
"""Of code, for which starting a process pays."""

_FACTS = {item.name: get_type_hints(Accelerator)[item.name] for item in fields(Accelerator) if item.name != "kernels"}
"""What a worker is told of an accelerator: all but its kernels, which are functions of this process; building needs none."""

_WORKER = f"import sys; sys.path[:] = sys.argv[1:]; from {__name__} import serve; serve()"


def build_many(launches: Sequence[Launch], accelerator: Accelerator, cache: str, processes: int | None = None) -> list[Built]:
    """What `build` makes of each launch. `processes` are as many as there are cores unless given, fewer where there is little to
    do; those of the same code are built by one of them, so that Triton compiles it once."""
    kinds: dict[str, list[int]] = {}
    for place, launch in enumerate(launches):
        kinds.setdefault(code_key(launch), []).append(place)
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), len(kinds) // _KINDS_OF_A_PROCESS)
    waiting, found = deque(kinds.values()), list[Built]([None] * len(launches))

    def work(build_one: Callable[[Launch], Built]) -> None:
        while waiting:
            try:
                places = waiting.popleft()
            except IndexError:  # another took the last
                return
            try:
                for place in places:
                    found[place] = build_one(launches[place])
            except (EOFError, OSError, msgspec.MsgspecError):
                waiting.append(places)
                return

    def work_beside() -> None:
        with suppress(OSError), _Worker() as worker:
            worker.tell((cache, {name: getattr(accelerator, name) for name in _FACTS}))
            work(worker.build)

    here = _Here(accelerator, cache)
    with ThreadPoolExecutor(max(1, processes - 1)) as threads:
        running = [threads.submit(work_beside) for _ in range(processes - 1)]
        work(here.build)
        for one in running:
            one.result()
    work(here.build)  # what processes that failed have left
    return found


@dataclass(frozen=True)
class _Here:
    """Builds in this process."""

    accelerator: Accelerator
    cache: str

    def build(self, launch: Launch) -> Built:
        try:
            return build(launch, self.accelerator, self.cache)
        except ModelError:
            return None


class _Worker:
    """Builds in a process of its own, which ends with its input."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", _WORKER, *sys.path], stdin=pipe, stdout=pipe)

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def tell(self, what: object) -> None:
        assert self._process.stdin is not None
        _write(self._process.stdin, what)

    def build(self, launch: Launch) -> Built:
        self.tell(launch)
        assert self._process.stdout is not None
        return msgspec.msgpack.decode(_read(self._process.stdout), type=Built)


def _write(to: IO[bytes], what: object) -> None:
    """A message behind its length."""
    message = msgspec.msgpack.encode(what)
    to.write(len(message).to_bytes(8, "little") + message)
    to.flush()


def _read(source: IO[bytes]) -> bytes:
    """The next message. Raises EOFError where there is no whole one."""
    head = source.read(8)
    message = source.read(int.from_bytes(head, "little"))
    if len(head) < 8 or len(message) < int.from_bytes(head, "little"):
        raise EOFError
    return message


def serve() -> None:
    """What a worker does: read launches from stdin, answer on stdout, where nothing else may be written."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    for answer in _answers(sys.stdin.buffer):
        _write(answers, answer)


def _answers(asked: IO[bytes]) -> Iterable[Built]:
    cache, facts = msgspec.msgpack.decode(_read(asked), type=tuple[str, dict[str, msgspec.Raw]])
    known = {name: msgspec.msgpack.decode(facts[name], type=kind) for name, kind in _FACTS.items()}
    here = _Here(Accelerator(kernels=(), **known), cache)
    while True:
        try:
            launch = msgspec.msgpack.decode(_read(asked), type=Launch)
        except EOFError:
            return
        yield here.build(launch)
