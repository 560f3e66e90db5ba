"""Arrays on their way to the device, several at a time: into page-locked memory by one thread each, from there by the device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from ...plans.weight_layout import BLOCKS
from ..host_arrays import HostArray
from .arrays import DeviceArray
from .device import Device
from .kernels import DeviceKernels
from .packing import Packing

CHUNK_BYTES = 4 << 20
_MOST_THREADS = 16

Job = tuple[DeviceArray, Callable[[], Iterable[HostArray]]]
"""Where an array goes, and what makes its pieces: their bytes lie one after another in it, or are packed so into blocks."""


def upload_all(
    device: Device,
    jobs: Sequence[Job],
    done: Callable[[int], None],
    kernels: DeviceKernels | None = None,
    threads: int | None = None,
) -> None:
    """Make arrays and copy them to the device, `threads` (by default one for each core, at most 16) at a time. `kernels` pack
    those of block types.

    `done` is told the number of each, in order, once it is on its way. All copies are made when this returns; nothing else on
    the device waits for them. What making one raises is raised, after those under way have ended.
    """
    chunks = sum(target.nbytes for target, _ in jobs) // CHUNK_BYTES
    count = threads or min(_MOST_THREADS, os.cpu_count() or 1, chunks + 1)
    packed = any(target.dtype in BLOCKS for target, _ in jobs)
    lanes: list[_Lane] = []
    free: SimpleQueue[_Lane] = SimpleQueue()

    def carry(job: Job) -> None:
        target, make = job
        device.make_current()
        lane = free.get()
        try:
            at = 0
            for piece in make():
                lane.carry(np.ascontiguousarray(piece.data), piece.dtype, target, at)
                at += piece.data.nbytes
        finally:
            free.put(lane)

    try:
        for _ in range(count):
            lanes.append(_Lane(device, kernels if packed else None))
            free.put(lanes[-1])
        with ThreadPoolExecutor(count, "weights-upload") as pool:
            try:
                for at, _ in enumerate(pool.map(carry, jobs)):
                    done(at)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        for lane in lanes:
            lane.close()


class WeightsOnTheirWay:
    """Arrays that `load`, in a thread of its own, is filling; what it raises is raised by `wait`."""

    def __init__(self, arrays: Mapping[str, DeviceArray], load: Callable[[], None]) -> None:
        self.arrays = arrays
        self._pool = ThreadPoolExecutor(1, "weights")
        self._loaded = self._pool.submit(load)

    def wait(self) -> None:
        """Return when all of them are filled."""
        try:
            self._loaded.result()
        finally:
            self._pool.shutdown()

    def settle(self) -> None:
        """Return when nothing of it runs any more, however it ended."""
        self._pool.shutdown()


class _Lane:
    """A stream, and two page-locked chunks of one thread: one is filled while the other is copied."""

    def __init__(self, device: Device, kernels: DeviceKernels | None) -> None:
        self._device = device
        self._stream = device.create_stream()
        self._chunks = [device.allocate_host(CHUNK_BYTES, "weights on their way", zeroed=False) for _ in range(2)]
        self._free = [device.create_event() for _ in range(2)]
        self._turn = 0
        self._packing = None if kernels is None else Packing(device, kernels, CHUNK_BYTES, self._stream)

    def carry(self, source: NDArray[np.generic], dtype: str, target: DeviceArray, at: int) -> None:
        """Bring elements (or a checkpoint's blocks) of type `dtype` to where the target's begin that come after `at` bytes of
        these."""
        data = source.reshape(-1).view(np.uint8)
        packing = self._packing if target.dtype in BLOCKS else None
        stretch = CHUNK_BYTES if packing is None else packing.stretch(dtype)
        for start in range(0, len(data), stretch):
            part = data[start : start + stretch]
            chunk, free = self._chunks[self._turn], self._free[self._turn]
            self._device.wait(free)
            chunk[: len(part)] = part
            if packing is None:
                self._device.upload(target.address + at + start, chunk[: len(part)], self._stream)
            else:
                packing.pack(chunk[: len(part)], dtype, target, at + start)
            self._device.record(free, self._stream)
            self._turn = 1 - self._turn

    def close(self) -> None:
        """Waits for its copies."""
        self._device.synchronise(self._stream)
        if self._packing is not None:
            self._packing.close()
        for chunk, event in zip(self._chunks, self._free, strict=True):
            self._device.free_host(chunk)
            self._device.destroy_event(event)
        self._device.destroy_stream(self._stream)
