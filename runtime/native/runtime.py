"""The native side of one executor: the plan's library, its team of threads, and memory for packed weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ...plans.weight_layout import BLOCKS, stored_bytes
from ..host_arrays import large_bytes
from .calls import CallList
from .library import NativeLibrary
from .records import PackedWeight, describe
from .team import ThreadTeam

_ALIGNMENT = 64


class NativeRuntime:
    """Loads the library, starts the threads. `processors` pins them, one each."""

    def __init__(
        self, code: bytes | memoryview, sha256: str, threads: int | None, processors: Sequence[int] | None = None
    ) -> None:
        self.library = NativeLibrary(code, sha256)
        self.team = ThreadTeam(self.library, threads or len(os.sched_getaffinity(0)), processors)

    def sealed(self, calls: CallList) -> CallList:
        """The call list, checked, with room for its scratch."""
        self.team.reserve(calls.seal(self.team.size))
        return calls

    def close(self) -> None:
        self.team.close()


class PackedArena:
    """One stretch of memory for all packed weights, on huge pages: fewer misses in address lookup."""

    def __init__(self, count: int) -> None:
        self._bytes = large_bytes(count)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: str) -> PackedWeight:
        count = stored_bytes(shape, dtype, "panel")
        start = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        self._used = start + count
        return PackedWeight(self._bytes[start : start + count], shape, dtype)


def arena_bytes(sizes: Sequence[int]) -> int:
    """What `PackedArena` needs for weights of these sizes."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def pack(runtime: NativeRuntime, values: Any, dtype: str, target: PackedWeight, label: str) -> None:
    """Write a row-major weight of `dtype` (for block types: its rows of bytes) into the panel layout, rounding as needed."""
    source = describe(values, dtype)
    if dtype in BLOCKS:
        source = replace(source, shape=target.shape, strides=())
    calls = CallList(runtime.library)
    calls.add("pack_panel", [source], [describe(target, target.dtype)], {}, label)
    runtime.sealed(calls).run(runtime.team)
