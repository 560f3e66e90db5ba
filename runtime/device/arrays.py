"""Arrays in device memory, and the one stretch of it that a plan's numbers lay out."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...plans.errors import PlanError
from ...plans.program import DTYPE_BYTES
from ...plans.weight_layout import stored_bytes
from ..host_arrays import NUMPY_TYPES, HostArray
from .device import Device

ALIGNMENT = 64
"""Bytes; every array begins at a multiple of it, and counts rounded up to it."""


def rounded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def bytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a dense array, of elements or of blocks."""
    return stored_bytes(shape, dtype, "none")


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a row-major array."""
    return tuple(prod(shape[at + 1 :]) for at in range(len(shape)))


@dataclass(frozen=True)
class DeviceArray:
    """An array on the device: address, shape, element strides, and its type as plans name it."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return bytes_of(self.shape, self.dtype)

    def first(self, rows: int) -> DeviceArray:
        """The first rows of it, the same memory."""
        return DeviceArray(self.address, (rows, *self.shape[1:]), self.strides, self.dtype)

    def window(self, offset: int, dtype: str, shape: tuple[int, ...]) -> DeviceArray:
        """A dense array at byte `offset` of this array of bytes."""
        return DeviceArray(self.address + offset, shape, dense(shape), dtype)

    def strided(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> DeviceArray:
        """A view from element `offset` on; strides count elements."""
        return DeviceArray(self.address + offset * DTYPE_BYTES[self.dtype], shape, strides, self.dtype)


class DeviceArena:
    """Device memory that is allocated once and handed out in order. `used` never exceeds `size`, what the plan says."""

    def __init__(self, device: Device, size: int, purpose: str) -> None:
        self.size, self.used = size, 0
        self._device, self._purpose = device, purpose
        self._start = device.allocate(size, purpose)

    def take(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """Zeroed room for a dense array. Raises PlanError when the plan's numbers leave none."""
        count = rounded(bytes_of(shape, dtype))
        if self.used + count > self.size:
            raise PlanError(
                "The plan's arrays need more device memory than it says.",
                where="memory",
                expected=f"at most {self.size} bytes of {self._purpose}",
                got=f"{self.used + count} bytes",
                fix="compile the plan again with tokenspeed-compile",
            )
        found = DeviceArray(self._start + self.used, shape, dense(shape), dtype)
        self.used += count
        return found

    def put(self, array: HostArray) -> DeviceArray:
        """A copy of a host array; waits until it is made."""
        found = self.take(array.shape, array.dtype)
        self._device.upload(found.address, np.ascontiguousarray(array.data))
        self._device.synchronise()
        return found


def fetched(device: Device, array: DeviceArray) -> HostArray:
    """A copy in host memory, after all work so far. A strided array comes as a strided view of all it spans."""
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True))
    flat: NDArray[np.uint8] = np.empty((span if array.elements else 0) * DTYPE_BYTES[array.dtype], np.uint8)
    device.download(flat, array.address)
    device.synchronise()
    data = flat.view(NUMPY_TYPES[array.dtype])
    strides = [stride * data.itemsize for stride in array.strides]
    return HostArray(np.lib.stride_tricks.as_strided(data, array.shape, strides), array.dtype)
