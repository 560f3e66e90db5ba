"""8-bit floats of checkpoints (e4m3, of no infinities) and their scales: as numbers, and as blocks of e4m3_128."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..plans.recipe import Scales
from ..plans.weight_layout import BLOCKS
from .host_arrays import HostArray

_ROWS, _THREADS = 512, 2


def _values() -> NDArray[np.float32]:
    """What each byte stands for."""
    bits = np.arange(256)
    exponent, fraction = bits >> 3 & 15, bits & 7
    size = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    size[bits & 127 == 127] = np.nan
    return np.where(bits & 128, -size, size).astype(np.float32)


VALUES = _values()


def scaled_floats(bits: NDArray[np.uint8], factors: NDArray[np.float32], scales: Scales) -> HostArray:
    """bits[..., N, K] times their factors, in f32."""
    columns = bits.shape[-1]
    made = np.empty(bits.shape, np.float32)

    def fill(at: tuple[int, ...], first: int, stop: int) -> None:
        rows = made[at][first:stop]
        np.take(VALUES, bits[at][first:stop], out=rows)
        rows *= np.repeat(_of_rows(factors[at], scales, first, stop), scales.columns, axis=1)[:, :columns]

    _for_rows(bits.shape, fill)
    return HostArray(made, "f32")


def float_blocks(bits: NDArray[np.uint8], factors: NDArray[np.float32], scales: Scales) -> HostArray:
    """bits[..., N, K] and their factors as rows of blocks, [..., N, bytes]. Raises ValueError where a scale ends inside one."""
    elements, size = BLOCKS["e4m3_128"]
    *others, rows, columns = bits.shape
    if columns % elements or (scales.columns % elements and scales.columns < columns):
        raise ValueError(f"scales for each {scales.columns} of {columns} columns in blocks of {elements}")
    made = np.empty((*others, rows, columns // elements, size), np.uint8)

    def fill(at: tuple[int, ...], first: int, stop: int) -> None:
        target = made[at][first:stop]
        target[..., size - elements :] = bits[at][first:stop].reshape(stop - first, -1, elements)
        each = max(1, scales.columns // elements)
        of_blocks = np.repeat(_of_rows(factors[at], scales, first, stop), each, axis=1)[:, : columns // elements]
        target[..., : size - elements] = np.ascontiguousarray(of_blocks)[..., None].view(np.uint8)

    _for_rows(bits.shape, fill)
    return HostArray(made.reshape(*others, rows, -1), "e4m3_128")


def _of_rows(factors: NDArray[np.float32], scales: Scales, first: int, stop: int) -> NDArray[np.float32]:
    return factors[np.arange(first, stop) // scales.rows]


def _for_rows(shape: tuple[int, ...], fill: Callable[[tuple[int, ...], int, int], None]) -> None:
    *others, rows, _ = shape
    jobs = [(at, first, min(first + _ROWS, rows)) for at in np.ndindex(*others) for first in range(0, rows, _ROWS)]
    with ThreadPoolExecutor(_THREADS, "floats") as pool:
        list(pool.map(lambda job: fill(*job), jobs))
