"""What a step leaves on the device, on its way to the host while the next step runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from ...plans.program import DTYPE_BYTES, Program
from ...plans.sampling import RESULTS
from ..host_arrays import NUMPY_TYPES, HostArray
from .arrays import DeviceArray, rounded
from .device import Device

_IN_FLIGHT = 2


class Results:
    """Copies arrays into page-locked memory, `most` bytes at a time, for two steps in flight: the copies of one may be read
    while those of the next arrive."""

    def __init__(self, device: Device, most: int) -> None:
        self._places = [_Place(device, most) for _ in range(_IN_FLIGHT)]
        self._turn = 0

    def read(self, arrays: Mapping[str, DeviceArray]) -> Callable[[], Mapping[str, HostArray]]:
        """Begin to copy dense arrays as the work so far leaves them. What it gives waits for the copies, on any thread that the
        device is current on; it must be called before the second `read` after this one."""
        place = self._places[self._turn]
        self._turn = (self._turn + 1) % _IN_FLIGHT
        return place.read(arrays)


def results_bytes(program: Program) -> int:
    """The most that is read of a sample program's buffers."""
    largest = max(program.buckets, key=lambda bucket: bucket.logit_rows)
    symbols = {"rows": largest.rows, "logit_rows": largest.logit_rows}
    shapes = [(item, [symbols.get(str(extent), extent) for extent in item.shape]) for item in program.buffers]
    return sum(rounded(prod(map(int, shape)) * DTYPE_BYTES[item.dtype]) for item, shape in shapes if item.name in RESULTS)


class _Place:
    def __init__(self, device: Device, most: int) -> None:
        self._device = device
        self._arrived = device.create_event()
        self._bytes = device.allocate_host(most, "results")

    def read(self, arrays: Mapping[str, DeviceArray]) -> Callable[[], Mapping[str, HostArray]]:
        found, at = {}, 0
        for name, array in arrays.items():
            window = self._bytes[at : at + array.nbytes]
            self._device.download(window, array.address)
            found[name] = HostArray(window.view(NUMPY_TYPES[array.dtype]).reshape(array.shape), array.dtype)
            at += rounded(array.nbytes)
        self._device.record(self._arrived)

        def arrived() -> Mapping[str, HostArray]:
            self._device.wait(self._arrived)
            return {name: HostArray(array.data.copy(), array.dtype) for name, array in found.items()}

        return arrived
