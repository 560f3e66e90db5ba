"""Arrays in host memory with the types of plans. No torch here: a plan of native kernels alone runs without it."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..plans.program import DTYPE_BYTES

if TYPE_CHECKING:
    import torch

NUMPY_TYPES: dict[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "bf16": np.uint16,  # its bits: numpy has no such type
    "f16": np.float16,
    "i32": np.int32,
    "i64": np.int64,
    "u8": np.uint8,
    "i8": np.int8,
    "i1": np.bool_,
    "f8e4m3": np.uint8,  # its bits
}
_HUGE_PAGE = 2 << 20
_LINE = 64


@dataclass(frozen=True)
class HostArray:
    """An array and its type as plans name it. `data` holds bfloat16 as the bits of it (uint16).

    `arena` is the flat array of bytes that it is a window of, if so: its tensor shares that tensor's storage, so that functions
    may join windows that lie side by side.
    """

    data: NDArray[Any]
    dtype: str
    arena: HostArray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @cached_property
    def tensor(self) -> torch.Tensor:
        """The same memory as a torch tensor, for functions of libraries; imports torch."""
        from .device_arrays import as_tensor, window

        if self.arena is None:
            return as_tensor(self.data, self.dtype)
        strides = tuple(stride // self.data.itemsize for stride in self.data.strides)
        start = self.data.ctypes.data - self.arena.data.ctypes.data
        return window(self.arena.tensor, self.dtype, self.shape, strides, start)

    def first(self, rows: int) -> HostArray:
        """The first rows of it, the same memory."""
        return HostArray(self.data[:rows], self.dtype)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def span(self) -> tuple[int, int]:
        """The addresses from its first byte to behind its last."""
        return np.lib.array_utils.byte_bounds(self.data) if self.data.size else (0, 0)

    @property
    def elements(self) -> int:
        return self.data.size

    def window(self, offset: int, dtype: str, shape: tuple[int, ...]) -> HostArray:
        """A dense array at byte `offset` of this array of bytes."""
        data = self.data[offset : offset + prod(shape) * DTYPE_BYTES[dtype]]
        return HostArray(data.view(NUMPY_TYPES[dtype]).reshape(shape), dtype, self)

    def strided(self, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> HostArray:
        """A view from element `offset` on; strides count elements."""
        flat = self.data.reshape(-1)[offset:]
        counted = [stride * flat.itemsize for stride in strides]
        return HostArray(np.lib.stride_tricks.as_strided(flat, shape, counted), self.dtype, self.arena)

    def as_float(self) -> NDArray[np.float32]:
        """A copy in float32."""
        return widened(self.data) if self.dtype == "bf16" else self.data.astype(np.float32)


@dataclass(frozen=True)
class LibraryArray:
    """A weight that a library has packed in its own way: a torch tensor that only its functions read."""

    tensor: Any


def committed(shape: tuple[int, ...], dtype: str) -> HostArray:
    """A zeroed array whose pages are all in memory now, so that a machine too small is found at load; huge pages where the
    system has them."""
    count = prod(shape) * DTYPE_BYTES[dtype]
    data = large_bytes(count) if count >= _HUGE_PAGE else np.empty(count, np.uint8)
    data.fill(0)
    return HostArray(data.view(NUMPY_TYPES[dtype]).reshape(shape), dtype)


def committed_together(wanted: Mapping[str, tuple[tuple[int, ...], str]]) -> dict[str, HostArray]:
    """`committed` arrays of these shapes and types by name, side by side: each alone would be rounded up to huge pages."""
    sizes = {name: prod(shape) * DTYPE_BYTES[dtype] for name, (shape, dtype) in wanted.items()}
    stretch = committed((sum(-(-size // _LINE) * _LINE for size in sizes.values()),), "u8").data
    made, start = {}, 0
    for name, (shape, dtype) in wanted.items():
        made[name] = HostArray(stretch[start : start + sizes[name]].view(NUMPY_TYPES[dtype]).reshape(shape), dtype)
        start += -(-sizes[name] // _LINE) * _LINE
    return made


def large_bytes(count: int) -> NDArray[np.uint8]:
    """Bytes that begin at a huge page, on huge pages where the system has them; zero until written, not in memory until then.

    The mapping is private: shared memory, which Python maps by default, gets no huge pages on most systems.
    """
    length = max(count, 1) + _HUGE_PAGE
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, length, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    start = -data.ctypes.data % _HUGE_PAGE
    return data[start : start + count]


def release_free_memory() -> None:
    """Give what the allocator keeps for later back to the system, where its C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def from_bytes(data: memoryview, shape: tuple[int, ...], dtype: str) -> HostArray:
    """A copy of raw little-endian bytes as an array."""
    return HostArray(np.frombuffer(bytearray(data), NUMPY_TYPES[dtype]).reshape(shape), dtype)


def widened(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """bfloat16, given as bits, in float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrowed(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Float32 rounded to bfloat16 (to nearest, ties to even; NaN stays NaN), as bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = ((bits[nan] >> np.uint32(16)) | np.uint32(0x40)).astype(np.uint16)
    return rounded
