"""Arrays on their way to the device, several at a time: into page-locked memory by one thread each, from there by the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from ..host_arrays import HostArray
from .arrays import DeviceArray
from .device import Device

CHUNK_BYTES = 16 << 20
_MOST_THREADS = 8

Job = tuple[DeviceArray, Callable[[], HostArray]]
"""Where an array goes, and what makes it."""


def upload_all(device: Device, jobs: Sequence[Job], done: Callable[[int], None], threads: int | None = None) -> None:
    """Make arrays and copy them to the device, `threads` (by default one for each core, at most 8) at a time.

    `done` is told the number of each, in order, once it is on its way. All copies are made when this returns. What making
    one raises is raised, after those under way have ended.
    """
    chunks = sum(target.nbytes for target, _ in jobs) // CHUNK_BYTES
    count = threads or min(_MOST_THREADS, os.cpu_count() or 1, chunks + 1)
    lanes = [_Lane(device) for _ in range(count)]
    free: SimpleQueue[_Lane] = SimpleQueue()
    for lane in lanes:
        free.put(lane)

    def carry(job: Job) -> None:
        target, make = job
        data = np.ascontiguousarray(make().data)
        device.make_current()
        lane = free.get()
        try:
            lane.carry(data, target.address)
        finally:
            free.put(lane)

    with ThreadPoolExecutor(count, "weights-upload") as pool:
        try:
            for at, _ in enumerate(pool.map(carry, jobs)):
                done(at)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    device.synchronise()
    for lane in lanes:
        lane.close()


class _Lane:
    """Two page-locked chunks of one thread: one is filled while the other is copied."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._chunks = [device.allocate_host(CHUNK_BYTES, "weights on their way") for _ in range(2)]
        self._free = [device.create_event() for _ in range(2)]
        self._turn = 0

    def carry(self, source: NDArray[np.generic], address: int) -> None:
        data = source.reshape(-1).view(np.uint8)
        for start in range(0, len(data), CHUNK_BYTES):
            part = data[start : start + CHUNK_BYTES]
            chunk, free = self._chunks[self._turn], self._free[self._turn]
            self._device.wait(free)
            chunk[: len(part)] = part
            self._device.upload(address + start, chunk[: len(part)])
            self._device.record(free)
            self._turn = 1 - self._turn

    def close(self) -> None:
        for chunk in self._chunks:
            self._device.free_host(chunk)
