"""The records of targets/cpu/native/abi.h, as numpy sees them, and arrays described by them. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

TENSOR = np.dtype(
    [
        ("data", "u8"),
        ("shape", "i8", 4),
        ("strides", "i8", 4),
        ("type", "i4"),
        ("rank", "i4"),
        ("symbol", "i4"),
        ("layout", "i4"),
    ]
)
CALL = np.dtype([("run", "u8"), ("tensors", "u8"), ("numbers", "u8"), ("inputs", "i4"), ("outputs", "i4")])

_TYPE_NAMES = ("f32", "bf16", "f16", "i32", "i64", "u8", "i8", "q8_0", "q4_0", "q4_1", "q4_k")
TYPES = {name: number for number, name in enumerate(_TYPE_NAMES)}
SYMBOLS = {"": 0, "rows": 1, "logit_rows": 2}
_ROW_MAJOR, _PANEL = 0, 1

Symbol = Literal["", "rows", "logit_rows"]


@dataclass(frozen=True)
class NativeArray:
    """An array as kernels see it. `strides` count elements; `panel` weights have the panel layout (targets/cpu/native/panel.h).

    `owner` keeps the memory alive. `symbol` is the row count that shape[0] follows from step to step.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    panel: bool
    owner: object
    symbol: Symbol = ""

    def record(self) -> tuple[Any, ...]:
        """The fields of a TENSOR record."""
        shape, strides = ((*values, 0, 0, 0, 0)[:4] for values in (self.shape, self.strides))
        layout = _PANEL if self.panel else _ROW_MAJOR
        return self.address, shape, strides, TYPES[self.dtype], len(self.shape), SYMBOLS[self.symbol], layout


@dataclass(frozen=True)
class PackedWeight:
    """A weight [N, K] or [E, N, K] in the panel layout: `data` is a flat array of bytes, `shape` and `dtype` are logical."""

    data: Any
    shape: tuple[int, ...]
    dtype: str


def describe(array: Any, dtype: str, symbol: Symbol = "") -> NativeArray:
    """A torch tensor, numpy array or packed weight as a kernel sees it. `dtype` is its element type's name in plans."""
    if isinstance(array, PackedWeight):
        return NativeArray(_address(array.data), array.shape, _dense(array.shape), array.dtype, True, array, symbol)
    if isinstance(array, np.ndarray):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        return NativeArray(_address(array), array.shape, strides, dtype, False, array, symbol)
    return NativeArray(_address(array), tuple(array.shape), tuple(array.stride()), dtype, False, array, symbol)


def _address(array: Any) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data_ptr()


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[at + 1 :]) for at in range(len(shape)))
