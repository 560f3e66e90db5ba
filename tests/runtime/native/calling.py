"""Builds the kernels for every instruction set this host runs, and calls one of them as the executor does."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenspeed.plans.program import Attribute
from tokenspeed.runtime.native.calls import CallList
from tokenspeed.runtime.native.library import NativeLibrary
from tokenspeed.runtime.native.records import NativeArray, PackedWeight, describe
from tokenspeed.runtime.native.team import ThreadTeam
from tokenspeed.targets.cpu.build import build_library, find_compiler
from tokenspeed.targets.cpu.machines import CPU_MACHINES

DTYPES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.int8: "i8",
}
Operand = torch.Tensor | PackedWeight | NativeArray


def _present() -> set[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = set(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())
    return flags if _lends_tiles() else flags - {"amx_tile"}


def _lends_tiles() -> bool:
    """Whether this process may use the tile registers: arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of Linux on x86-64."""
    return platform.machine() == "x86_64" and ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


MACHINES = {machine.name: machine for machine in CPU_MACHINES if machine.compiler_flags and _present() >= {*machine.features}}
"""CPU targets that have native kernels and whose instructions this host runs."""

on_every_machine = pytest.mark.parametrize("machine", MACHINES)


@functools.cache
def library(machine: str) -> NativeLibrary:
    compiler = find_compiler()
    assert compiler is not None, "the native kernels' tests need a C++ compiler: apt install g++"
    data = build_library(compiler, MACHINES[machine].compiler_flags)
    return NativeLibrary(data, hashlib.sha256(data).hexdigest())


@functools.cache
def team(machine: str, threads: int) -> ThreadTeam:
    return ThreadTeam(library(machine), threads)


def native(array: Operand) -> NativeArray:
    if isinstance(array, NativeArray):
        return array
    return describe(array, "" if isinstance(array, PackedWeight) else DTYPES[array.dtype])


def call(
    machine: str, name: str, inputs: Sequence[Operand], outputs: Sequence[Operand], threads: int = 2, **attributes: Attribute
) -> None:
    """Run one kernel once on `threads` threads."""
    calls = CallList(library(machine))
    calls.add(name, [native(item) for item in inputs], [native(item) for item in outputs], attributes, "test")
    crew = team(machine, threads)
    crew.reserve(calls.seal(threads))
    calls.run(crew)


def empty_packed(shape: tuple[int, ...], dtype: str, count: int) -> PackedWeight:
    """A packed weight of `count` bytes, not filled yet."""
    raw = torch.full((count + 64,), 0x7F, dtype=torch.uint8)
    start = -raw.data_ptr() % 64
    return PackedWeight(raw[start : start + count], shape, dtype)


def as_numpy(array: torch.Tensor) -> np.ndarray:
    return array.to(torch.float64).numpy()
