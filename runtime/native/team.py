"""The threads that kernels run on: as many as the engine was given, alive as long as it is, asleep between steps."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Sequence

import numpy as np

from .library import NativeLibrary

# Rounds of the pause instruction before an idle thread sleeps: about 100 us, longer than the gap between a step's launches.
_SPINS = 4096
_LINE = 64


def aligned_bytes(count: int, alignment: int = _LINE) -> np.ndarray:
    """`count` zeroed bytes at a multiple of `alignment`."""
    raw = np.zeros(count + alignment, np.uint8)
    start = -raw.ctypes.data % alignment
    return raw[start : start + count]


class ThreadTeam:
    """`threads` threads of which the caller of `run` is the first. `processors`, if given, pins thread i to processors[i]."""

    def __init__(self, library: NativeLibrary, threads: int, processors: Sequence[int] | None = None) -> None:
        self.size = threads
        self._entry = library.entry_points
        self._library = library  # keeps the code mapped
        self._shared = aligned_bytes(library.shared_bytes)
        self._scratch = aligned_bytes(_LINE)
        self._address = self._shared.ctypes.data
        self._entry.ts_open(self._address, threads, self._scratch.ctypes.data, len(self._scratch), _SPINS)
        self._first_processor = processors[0] if processors else None
        self._workers = [
            threading.Thread(target=self._work, args=(index, processors), daemon=True, name=f"kernels-{index}")
            for index in range(1, threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def scratch_bytes(self) -> int:
        return len(self._scratch)

    def reserve(self, scratch_bytes: int) -> None:
        """Make the shared scratch at least this large. Not while calls run."""
        if scratch_bytes > len(self._scratch):
            self._scratch = aligned_bytes(scratch_bytes, 4096)
            self._entry.ts_set_scratch(self._address, self._scratch.ctypes.data, len(self._scratch))

    def run(self, calls: int, count: int) -> None:
        """Run `count` call records at address `calls`. Always from one thread; returns when all are done."""
        if self._first_processor is not None:
            os.sched_setaffinity(0, {self._first_processor})
            self._first_processor = None
        self._entry.ts_run(self._address, calls, count, None)

    def run_timed(self, calls: int, count: int) -> list[float]:
        """The same, with the seconds that each call took."""
        ticks = np.zeros(count, np.int64)
        start = time.perf_counter()
        self._entry.ts_run(self._address, calls, count, ticks.ctypes.data)
        seconds = time.perf_counter() - start
        return (ticks * (seconds / max(1, int(ticks.sum())))).tolist()

    def close(self) -> None:
        """End the threads. Further calls are an error."""
        if self._workers:
            self._entry.ts_close(self._address)
            for worker in self._workers:
                worker.join()
            self._workers = []

    def _work(self, index: int, processors: Sequence[int] | None) -> None:
        if processors:
            os.sched_setaffinity(0, {processors[index % len(processors)]})
        self._entry.ts_work(ctypes.c_void_p(self._address), index)
