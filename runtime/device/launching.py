"""Launches as the driver takes them: everything is made once, a launch is one call into the driver."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...plans.errors import PlanError
from .device import Device, Launch

_CLUSTER, _CLUSTER_POLICY, _DEPENDENT = 4, 5, 6  # CU_LAUNCH_ATTRIBUTE_*
_SPREAD = 1  # CU_CLUSTER_SCHEDULING_POLICY_SPREAD


_FORMATS = {"pointer": "<Q", "i64": "<q", "i32": "<i", "f32": "<f"}


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: the value is a union of 64 bytes."""

    _fields_ = (("id", ctypes.c_int32), ("padding", ctypes.c_uint32), ("value", ctypes.c_uint32 * 16))


class LaunchConfiguration(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", ctypes.c_uint32),
    )


@dataclass(frozen=True)
class Shape:
    """How many blocks (a multiple of `cluster` along x), of how many threads, with how much dynamic shared memory."""

    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    cluster: int = 1
    dependent: bool = False


class ParameterBlock:
    """A kernel's parameters in memory: a slot of 8 bytes each, and the list of their addresses that drivers ask for."""

    def __init__(self, values: Sequence[tuple[str, int | float]]) -> None:
        self._slots = (ctypes.c_uint64 * len(values))()
        start = ctypes.addressof(self._slots)
        for at, (kind, value) in enumerate(values):
            struct.pack_into(_FORMATS[kind], self._slots, at * 8, value)
        self.addresses = (ctypes.c_void_p * len(values))(*(start + at * 8 for at in range(len(values))))


def prepared(
    device: Device, function: int, shape: Shape, parameters: ParameterBlock, where: str, stream: int | None = None
) -> Launch:
    """The launch of a function on the device's stream, or another. Calling it raises DeviceError when the driver refuses."""
    stream = stream or device.stream
    operation, arguments = "launch", _plain(stream, function, shape, parameters)
    if shape.cluster > 1 or shape.dependent:
        operation, arguments = "launch_with_attributes", _attributed(stream, function, shape, parameters)
        if not device.driver.has(operation):
            raise PlanError(
                "The plan launches a device kernel in a way it cannot run.",
                where=where,
                expected=f"no clusters and no dependent launches: {device.driver.vendor.name} has none",
                got=f"clusters of {shape.cluster}, dependent: {shape.dependent}",
                fix="compile the plan again with tokenspeed-compile",
            )
    driver, run = device.driver, device.driver.function(operation)
    kept = (parameters, arguments)

    def launch() -> None:
        code = run(*kept[1])
        if code:
            raise driver.error(operation, code, where)

    return launch


def _plain(stream: int, function: int, shape: Shape, parameters: ParameterBlock) -> tuple[Any, ...]:
    block = (shape.threads, 1, 1)
    return function, *shape.grid, *block, shape.shared_bytes, stream, parameters.addresses, None


def _attributed(stream: int, function: int, shape: Shape, parameters: ParameterBlock) -> tuple[Any, ...]:
    wanted: list[tuple[int, tuple[int, ...]]] = []
    if shape.cluster > 1:
        wanted += [(_CLUSTER, (shape.cluster, 1, 1)), (_CLUSTER_POLICY, (_SPREAD,))]
    if shape.dependent:
        wanted.append((_DEPENDENT, (1,)))
    attributes = (LaunchAttribute * len(wanted))()
    for attribute, (number, values) in zip(attributes, wanted, strict=True):
        attribute.id = number
        attribute.value[: len(values)] = values
    configuration = LaunchConfiguration(
        (ctypes.c_uint32 * 3)(*shape.grid),
        (ctypes.c_uint32 * 3)(shape.threads, 1, 1),
        shape.shared_bytes,
        stream,
        attributes,
        len(wanted),
    )
    # the structure keeps `attributes` alive
    return ctypes.byref(configuration), function, parameters.addresses, None
