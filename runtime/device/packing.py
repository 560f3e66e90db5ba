"""Weights into planes of blocks, by the plan's own functions, on the device."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...plans.device_kernels import DEVICE
from ...plans.weight_layout import BLOCKS, chunk_of, packing_function, planes, row_bytes
from .arrays import DeviceArray
from .device import Device
from .kernels import DeviceKernels

_UNIT = 256
"""Elements that every type has a whole number of blocks and chunks of."""


class Packing:
    """Packs stretches of weights on the device, in a stream of it, each by way of a buffer of `size` bytes there."""

    def __init__(self, device: Device, kernels: DeviceKernels, size: int, stream: int) -> None:
        self._device, self._kernels, self._size, self._stream = device, kernels, size, stream
        self._buffer = device.allocate(size, "weights before they are packed", zeroed=False)

    def stretch(self, dtype: str) -> int:
        """Bytes of the longest stretch of a type."""
        unit = row_bytes(_UNIT, dtype)
        return self._size // unit * unit

    def pack(self, data: NDArray[np.uint8], dtype: str, target: DeviceArray, start: int) -> None:
        """Begin to pack `data`, values or a checkpoint's blocks of type `dtype`, which come after `start` bytes of the weight's.

        Page-locked `data` must stay until then.
        """
        block = row_bytes(_UNIT, dtype) * BLOCKS[target.dtype][0]
        first, blocks = start * _UNIT // block, len(data) * _UNIT // block
        source = DeviceArray(self._buffer, (blocks,), (1,), "u8" if dtype in BLOCKS else dtype)
        outputs = [
            DeviceArray(target.address + offset + first * width, (blocks,), (1,), kind)
            for kind, width, offset in planes(target.shape, target.dtype)
        ]
        name = DEVICE + packing_function(dtype, target.dtype, chunk_of(target.shape[-1], target.dtype))
        symbols = {"rows": blocks, "logit_rows": 0}
        launches = self._kernels.prepare(name, symbols, [source, *outputs], "packing weights", self._stream)
        self._device.upload(self._buffer, data, self._stream)
        for launch in launches:
            launch()

    def close(self) -> None:
        """Give the buffer back; nothing may be under way."""
        self._device.free(self._buffer)
