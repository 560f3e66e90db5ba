"""Arrays that the host writes and programs read: on the device, and page-locked on the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...plans.program import Buffer, StepInput
from ..host_arrays import NUMPY_TYPES, HostArray
from .arrays import DeviceArena, DeviceArray, rounded
from .device import Device

_IN_FLIGHT = 2
_LONG_ROW_BYTES = 64 << 10


class StepInputs:
    """The step inputs side by side on the device, and twice on the host, page-locked, in the same layout: one is written while
    the other waits behind the step that runs, for its turn to be copied."""

    def __init__(self, device: Device, arena: DeviceArena, items: Sequence[StepInput]) -> None:
        self._device = device
        self.arrays = {item.name: arena.take(_extents(item), item.dtype) for item in items}
        self._start = min((array.address for array in self.arrays.values()), default=0)
        size = sum(rounded(array.nbytes) for array in self.arrays.values())
        self._bytes = [device.allocate_host(size, "step inputs") for _ in range(_IN_FLIGHT)]
        self._copied = [device.create_event() for _ in range(_IN_FLIGHT)]
        self._host = [self._laid_out(whole) for whole in self._bytes]
        self._turn = 0
        self._kept: dict[str, HostArray] = {}

    def on_host(self, name: str) -> HostArray:
        """An ordinary array that holds the input of the step that was uploaded last: for functions that read it on the host."""
        if name not in self._kept:
            like = self._host[self._turn][name]
            self._kept[name] = HostArray(like.data.copy(), like.dtype)
        return self._kept[name]

    def next(self) -> Mapping[str, HostArray]:
        """The other arrays, once the step that had them last has got them."""
        self._turn = (self._turn + 1) % _IN_FLIGHT
        self._device.wait(self._copied[self._turn])
        return self._host[self._turn]

    def upload(self) -> None:
        """Begin to copy what `next` gave last."""
        for name, array in self._kept.items():
            array.data[:] = self._host[self._turn][name].data
        self._device.upload(self._start, self._bytes[self._turn])
        self._device.record(self._copied[self._turn])

    def _laid_out(self, whole: NDArray[np.uint8]) -> dict[str, HostArray]:
        found, at = {}, 0
        for name, array in self.arrays.items():
            found[name] = _host_array(whole[at : at + array.nbytes], array)
            at += rounded(array.nbytes)
        return found


class SlotRows:
    """The slot buffers on the device and on the host; rows of them go over one slot at a time.

    Arrays of short rows are page-locked. Those of long rows (counts over the vocabulary), which few requests ask for, are not: to
    lock hundreds of megabytes takes a good part of a start. Their rows go through a page-locked one.
    """

    def __init__(self, device: Device, arena: DeviceArena, items: Sequence[Buffer]) -> None:
        self._device = device
        self.arrays = {item.name: arena.take(_extents(item), item.dtype) for item in items}
        long = [name for name, array in self.arrays.items() if array.nbytes // array.shape[0] > _LONG_ROW_BYTES]
        self.host = {name: self._on_host(array, locked=name not in long) for name, array in self.arrays.items()}
        self._locked_rows = {name: self._locked_row(self.arrays[name]) for name in long}
        self._locked_rows_copied = device.create_event()
        # an event of its own for each row: what goes over behind a step that runs must not hold up the filling of other rows
        self._copied = [device.create_event() for _ in range(min((len(array.data) for array in self.host.values()), default=0))]

    def wait(self, row: int) -> None:
        """Return when the row may be written again."""
        self._device.wait(self._copied[row])

    def upload(self, row: int, names: Iterable[str]) -> None:
        """Begin to copy one row of these arrays."""
        long = False
        for name in names:
            array, source = self.arrays[name], self.host[name].data[row : row + 1]
            if name in self._locked_rows:
                if not long:
                    self._device.wait(self._locked_rows_copied)
                long = True
                self._locked_rows[name].data[:] = source
                source = self._locked_rows[name].data
            self._device.upload(array.address + row * (array.nbytes // array.shape[0]), source)
        if long:
            self._device.record(self._locked_rows_copied)
        self._device.record(self._copied[row])

    def _locked_row(self, array: DeviceArray) -> HostArray:
        row = array.first(1)
        return _host_array(self._device.allocate_host(row.nbytes, "a row of slot buffers"), row)

    def _on_host(self, array: DeviceArray, *, locked: bool) -> HostArray:
        if locked:
            return _host_array(self._device.allocate_host(array.nbytes, "slot buffers"), array)
        return HostArray(np.zeros(array.shape, NUMPY_TYPES[array.dtype]), array.dtype)


def _extents(item: StepInput | Buffer) -> tuple[int, ...]:
    return tuple(extent for extent in item.shape if isinstance(extent, int))


def _host_array(data: NDArray[np.uint8], like: DeviceArray) -> HostArray:
    """Bytes of the host as an array of the same shape and type."""
    found: NDArray[Any] = data.view(NUMPY_TYPES[like.dtype]).reshape(like.shape)
    return HostArray(found, like.dtype)
