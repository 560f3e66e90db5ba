"""Made-up weights, made where they stay: a pattern for each shape, repeated by copies on the device."""

from __future__ import annotations

from math import prod

from ...plans.names import weight_instances
from ...plans.program import DTYPE_BYTES
from ...plans.schema import Manifest
from ..dummy_weights import counter_array
from .arrays import DeviceArena, DeviceArray
from .device import Device

_PATTERN_ELEMENTS = 1 << 20


def dummy_weights(manifest: Manifest, needed: set[str] | None, device: Device, arena: DeviceArena) -> dict[str, DeviceArray]:
    """Every weight instance (or those in `needed`) by name: counter weights at first, repeated over the rest."""
    made: dict[str, DeviceArray] = {}
    first: dict[tuple[tuple[int, ...], str, bool], DeviceArray] = {}
    for weight in manifest.weights:
        for name, _ in weight_instances(weight):
            if needed is not None and name not in needed:
                continue
            array = made[name] = arena.take(weight.shape, weight.dtype)
            same = first.setdefault((weight.shape, weight.dtype, name.endswith("bias")), array)
            if same is array:
                _fill(device, array, name)
            else:
                device.copy(array.address, same.address, array.nbytes)
    device.synchronise()
    return made


def _fill(device: Device, array: DeviceArray, name: str) -> None:
    width = prod(array.shape[1:]) if array.shape else 1
    rows = min(array.shape[0] if array.shape else 1, max(1, _PATTERN_ELEMENTS // max(1, width)))
    pattern = counter_array(name, (rows, *array.shape[1:]) if array.shape else (), array.dtype)
    device.upload(array.address, pattern.data)
    device.synchronise()  # the pattern is not page-locked: it must live until it is there
    done, total = rows * width * DTYPE_BYTES[array.dtype], array.nbytes
    while done < total:
        count = min(done, total - done)
        device.copy(array.address + done, array.address, count)
        done += count
