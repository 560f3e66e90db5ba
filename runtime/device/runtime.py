"""The device side of one executor: its device, the plan's kernels on it, and the buckets that are captured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..host_arrays import HostArray
from .arrays import DeviceArray, fetched
from .device import Device
from .graphs import CapturedBuckets
from .kernels import DeviceKernels

if TYPE_CHECKING:
    from .library import DeviceLibrary


@dataclass(frozen=True)
class DeviceRuntime:
    """What expanding a program for a device needs. `library` runs the functions that are none of the plan's kernels, if it calls
    any; those that read step inputs on the host find them by `host_input`."""

    device: Device
    kernels: DeviceKernels
    graphs: CapturedBuckets
    library: DeviceLibrary | None
    host_input: Callable[[str], HostArray]

    def running(self) -> AbstractContextManager[object]:
        """What launches happen inside of."""
        return self.device if self.library is None else self.library.running()

    def fetch(self, array: DeviceArray) -> HostArray:
        """A copy of a device array in host memory; waits for all work before it."""
        return fetched(self.device, array)
