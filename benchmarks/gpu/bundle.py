"""Kernels built on a machine with Triton, to be measured on one with a device: one folder, binaries and what launches them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenspeed.plans.device_kernels import DeviceKernel

INDEX = "kernels.json"


class Step(msgspec.Struct, frozen=True):
    """A kernel and its operands: numbers of the case's operands (inputs, then outputs), or names of buffers between steps."""

    kernel: DeviceKernel
    operands: tuple[int | str, ...]


class BuiltCase(msgspec.Struct, frozen=True):
    """The steps of a case; `intermediates` are the buffers between them: (name, element type, elements)."""

    case: str
    steps: tuple[Step, ...]
    intermediates: tuple[tuple[str, str, int], ...]


class Bundle(msgspec.Struct, frozen=True):
    """`compiler` made the kernels for `target`."""

    target: str
    compiler: str
    cases: tuple[BuiltCase, ...]


def write(folder: Path, bundle: Bundle, binaries: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry, data in binaries.items():
        (folder / Path(entry).name).write_bytes(data)
    (folder / INDEX).write_bytes(msgspec.json.encode(bundle))


def read(folder: Path) -> Bundle:
    return msgspec.json.decode((folder / INDEX).read_bytes(), type=Bundle)


def binary(folder: Path, kernel: DeviceKernel) -> bytes:
    return (folder / Path(kernel.entry).name).read_bytes()
