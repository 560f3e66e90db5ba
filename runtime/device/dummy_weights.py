"""Made-up weights, made where they stay: a pattern for each shape, repeated by copies on the device."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from ...plans.names import weight_instances
from ...plans.recipe import sources
from ...plans.schema import Manifest
from ...plans.weight_layout import BLOCKS, planes
from ..dummy_weights import counter_array
from ..host_arrays import HostArray
from ..recipe_evaluation import evaluate
from .arrays import DeviceArena, DeviceArray
from .device import Device
from .kernels import DeviceKernels
from .packing import Packing

_PATTERN_ELEMENTS = 1 << 20


def dummy_weights(
    manifest: Manifest,
    needed: set[str] | None,
    device: Device,
    arena: DeviceArena,
    kernels: DeviceKernels,
    coordinates: Mapping[str, int],
) -> dict[str, DeviceArray]:
    """Every weight instance (or those in `needed`) by name: counter weights at first, repeated over the rest. What is made of no
    source is what the rank at these coordinates has."""
    made: dict[str, DeviceArray] = {}
    first: dict[tuple[tuple[int, ...], str, bool], DeviceArray] = {}
    for weight in manifest.weights:
        for name, _ in weight_instances(weight):
            if needed is not None and name not in needed:
                continue
            if not sources(weight.recipe):
                made[name] = arena.put(evaluate(weight.recipe, {}, None, name, coordinates))
                continue
            array = made[name] = arena.take(weight.shape, weight.dtype)
            same = first.setdefault((weight.shape, weight.dtype, name.endswith("bias")), array)
            if same is array:
                if array.dtype in BLOCKS:
                    _fill_planes(device, array, name, kernels)
                else:
                    _fill(device, array, name)
            else:
                device.copy(array.address, same.address, array.nbytes)
    device.synchronise()
    return made


def _fill(device: Device, array: DeviceArray, name: str) -> None:
    pattern = _pattern(array, name, array.dtype)
    device.upload(array.address, pattern.data)
    device.synchronise()  # the pattern is not page-locked: it must live until it is there
    _repeat(device, array.address, pattern.nbytes, array.nbytes)


def _fill_planes(device: Device, array: DeviceArray, name: str, kernels: DeviceKernels) -> None:
    data = _pattern(array, name, "f32").data.reshape(-1)
    packing = Packing(device, kernels, data.nbytes, device.stream)
    packing.pack(data.view(np.uint8), "f32", array, 0)
    device.synchronise()
    packing.close()
    elements, _ = BLOCKS[array.dtype]
    blocks, total = data.size // elements, array.elements // elements
    for _, width, offset in planes(array.shape, array.dtype):
        _repeat(device, array.address + offset, blocks * width, total * width)


def _pattern(array: DeviceArray, name: str, dtype: str) -> HostArray:
    """Whole rows of the first dimension, or of the second where the first has only large ones."""
    shape: tuple[int, ...] = array.shape
    if len(shape) == 0:
        return counter_array(name, (), dtype)
    while len(shape) > 2 and prod(shape[1:]) > _PATTERN_ELEMENTS:
        shape = shape[1:]
    first, *others = shape
    return counter_array(name, (min(first, max(1, _PATTERN_ELEMENTS // max(1, prod(others)))), *others), dtype)


def _repeat(device: Device, address: int, done: int, total: int) -> None:
    """What lies in the first `done` bytes again and again up to `total`."""
    while done < total:
        count = min(done, total - done)
        device.copy(address + done, address, count)
        done += count
