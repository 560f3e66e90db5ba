"""The device side of one executor: its device, the plan's kernels on it, and the buckets that are captured."""

from __future__ import annotations

from dataclasses import dataclass

from ..host_arrays import HostArray
from .arrays import DeviceArray, fetched
from .device import Device
from .graphs import CapturedBuckets
from .kernels import DeviceKernels


@dataclass(frozen=True)
class DeviceRuntime:
    """What expanding a program for a device needs."""

    device: Device
    kernels: DeviceKernels
    graphs: CapturedBuckets

    def fetch(self, array: DeviceArray) -> HostArray:
        """A copy of a device array in host memory; waits for all work before it."""
        return fetched(self.device, array)
