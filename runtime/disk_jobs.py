"""Does the jobs of the tier on disk, in threads of their own: between the host's blocks and a store of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import Empty, SimpleQueue

from .kv_store import KvStore, Parts
from .scheduling.disk_tier import DiskJob

READERS = 4
"""Threads that read: what a sequence waits for. One writes."""

BlockParts = Callable[[int], Parts]
"""The memory of a block on the host."""


class DiskJobs:
    """`parts`(block) are a host block's bytes. `submit`, `done` and `close` are for one thread."""

    def __init__(self, store: KvStore, parts: BlockParts) -> None:
        self._store, self._parts = store, parts
        self._writer, self._readers = ThreadPoolExecutor(1, "kv to disk"), ThreadPoolExecutor(READERS, "kv from disk")
        self._done: SimpleQueue[tuple[int, bool]] = SimpleQueue()
        self._under_way = 0

    @property
    def busy(self) -> bool:
        """Whether jobs are under way, or done and not told."""
        return self._under_way > 0

    def submit(self, jobs: Iterable[DiskJob]) -> None:
        """Begin these."""
        for job in jobs:
            self._under_way += 1
            threads, work = (self._readers, self._fetch) if job.fetch else (self._writer, self._store_unit)
            threads.submit(work, job).add_done_callback(partial(self._end, job.number))

    def done(self) -> list[tuple[int, bool]]:
        """Jobs that have ended since the last call, and whether they went well."""
        ended: list[tuple[int, bool]] = []
        try:
            while True:
                ended.append(self._done.get_nowait())
        except Empty:
            self._under_way -= len(ended)
        if ended and not self._under_way:
            self._writer.submit(self._store.sync)
        return ended

    def close(self) -> None:
        """End what is under way, and begin nothing else."""
        for threads in (self._readers, self._writer):
            threads.shutdown(cancel_futures=True)

    def _fetch(self, job: DiskJob) -> bool:
        return self._store.read(job.unit, self._of(job))

    def _store_unit(self, job: DiskJob) -> bool:
        return self._store.write(job.unit, self._of(job))

    def _of(self, job: DiskJob) -> Parts:
        return [part for block in job.host for part in self._parts(block)]

    def _end(self, number: int, future: Future[bool]) -> None:
        failed = future.cancelled() or future.exception() is not None
        self._done.put((number, not failed and future.result()))
