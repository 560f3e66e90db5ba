"""Kernels that sum over ranks, to be measured where there are devices: one folder, binaries and what launches them."""

from __future__ import annotations

from pathlib import Path

import msgspec
from tokenspeed.plans.device_kernels import DeviceKernel, Exchange

INDEX = "exchanges.json"


class BuiltSum(msgspec.Struct, frozen=True):
    """A kernel for messages of `rows` x `columns` in bfloat16; `norm`: with residual and norm. Operands are x, residual and
    weight (if there are any), the exchange, the sum, the norm's result."""

    way: str
    norm: bool
    columns: int
    rows: int
    blocks: int
    warps: int
    kernel: DeviceKernel
    exchange: Exchange


class Bundle(msgspec.Struct, frozen=True):
    target: str
    compiler: str
    ranks: int
    sums: tuple[BuiltSum, ...]
    norms: tuple[tuple[int, DeviceKernel], ...]
    """By columns: the addition and norm that follows a sum of the library's."""


def write(folder: Path, bundle: Bundle, binaries: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry, data in binaries.items():
        (folder / Path(entry).name).write_bytes(data)
    (folder / INDEX).write_bytes(msgspec.json.encode(bundle))


def read(folder: Path) -> Bundle:
    return msgspec.json.decode((folder / INDEX).read_bytes(), type=Bundle)


def binary(folder: Path, kernel: DeviceKernel) -> bytes:
    return (folder / Path(kernel.entry).name).read_bytes()
