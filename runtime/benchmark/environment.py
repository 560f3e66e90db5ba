"""The machine a figure was measured on; a figure without it says little."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path

import msgspec

from ..host import host_features, host_memory_bytes

_CPU_INFO = Path("/proc/cpuinfo")
_SIMD = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "asimd", "bf16")


class Environment(msgspec.Struct, frozen=True):
    """`load` is the one-minute load average before the measurement: processes that wanted to run, so anything well above 0
    was competing for the cores. `threads` are those of the math libraries, None where none is loaded."""

    date: str
    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    load: float
    threads: int | None
    python: str
    torch: str


def environment(threads: int | None = None) -> Environment:
    features = host_features()
    return Environment(
        date=date.today().isoformat(),
        cpu=_processor(),
        cores=usable_cores(),
        features=tuple(name for name in _SIMD if name in features),
        memory_bytes=host_memory_bytes(),
        load=round(os.getloadavg()[0], 2),
        threads=threads,
        python=platform.python_version(),
        torch=_version("torch"),
    )


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        fields = dict(_field(line) for line in _CPU_INFO.read_text(errors="replace").split("\n\n")[0].splitlines())
    except OSError:
        return platform.processor() or platform.machine()
    name = fields.get("model name") or platform.machine()
    family = f", family {fields['cpu family']} model {fields['model']}" if {"cpu family", "model"} <= fields.keys() else ""
    return name + family


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"
