"""Counter-based weights: any element of any weight, computed from its name and index alone (docs/plan-format.md).

For goldens and for `--weights dummy`. The mixing function is lowbias32 (C. Wellons, hash-prospector, public domain).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

# Work arrays of this many elements (128 KiB each) stay in a core's second-level cache; measured best of 4096 to 32768.
_CHUNK = 32768
_NORM_SCALE = 0.1


def counter_values(name: str, start: int, count: int, scale: float) -> FloatArray:
    """Elements `start` to `start + count` of the stream called `name`: float32 in [-scale, scale), uniform.

    Each element depends on its index only, so any split into calls gives the same values. Releases the GIL while it works.
    """
    if start < 0 or count < 0:
        raise ValueError("start and count must not be negative")
    seeds = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], dtype="<u4")
    output = np.empty(count, np.float32)
    lanes, scratch = np.arange(_CHUNK, dtype=np.uint32), np.empty(_CHUNK, np.uint32)
    work = np.empty(_CHUNK, np.uint32)
    step = np.float32(np.float32(scale) * np.float32(2.0**-23))
    position = 0
    while position < count:
        index = start + position
        size = min(_CHUNK, count - position, (1 << 32) - index % (1 << 32))  # the upper index word is constant in a chunk
        lower, upper = np.uint32(index % (1 << 32)), index >> 32
        x = work[:size]
        np.add(lanes[:size], lower, out=x)
        np.bitwise_xor(x, seeds[0], out=x)
        np.add(x, np.uint32((int(seeds[1]) + 0x9E3779B9 * upper) % (1 << 32)), out=x)
        _mix(x, scratch[:size])
        _to_float(x, step, output[position : position + size])
        position += size
    return output


def _mix(x: NDArray[np.uint32], scratch: NDArray[np.uint32]) -> None:
    """lowbias32 in place."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
        np.right_shift(x, np.uint32(shift), out=scratch)
        np.bitwise_xor(x, scratch, out=x)
        if factor is not None:
            np.multiply(x, np.uint32(factor), out=x)


def _to_float(x: NDArray[np.uint32], step: np.float32, output: FloatArray) -> None:
    """((x >> 8) - 2^23) * step; the difference is exact in float32, so there is one rounding."""
    np.right_shift(x, np.uint32(8), out=x)
    signed = x.view(np.int32)
    np.subtract(signed, np.int32(1 << 23), out=signed)
    np.multiply(signed, step, out=output, casting="unsafe", dtype=np.float32)


def weight_scale(shape: tuple[int, ...]) -> float:
    """sqrt(3 / fan_in) for two or more dimensions (fan_in is the last), which keeps a linear layer's variance; else 0.1."""
    return float(np.sqrt(3.0 / shape[-1])) if len(shape) >= 2 else _NORM_SCALE


def counter_elements(name: str, shape: tuple[int, ...], places: Sequence[NDArray[np.int64]]) -> FloatArray:
    """The elements of `counter_weight(name, shape)` at `places` of each of its dimensions (one or more): float32."""
    output = np.empty([len(own) for own in places], np.float32)
    if not output.size:
        return output
    if len(shape) == 1:
        for start, stop in _runs(places[0]):
            output[start:stop] = counter_weight(name, shape, int(places[0][start]), int(places[0][stop - 1]) + 1)
        return output
    scale, base, target = weight_scale(shape), 0, output
    while len(shape) > 2 and len(places[0]) == 1:  # within one entry of the first dimension
        base += int(places[0][0]) * prod(shape[1:])
        shape, places, target = shape[1:], places[1:], target[0]
    whole_rows = all(
        len(own) == size and bool((own == np.arange(size)).all()) for own, size in zip(places[1:], shape[1:], strict=True)
    )
    if whole_rows:
        row = prod(shape[1:])
        for start, stop in _runs(places[0]):
            values = counter_values(name, base + int(places[0][start]) * row, (stop - start) * row, scale)
            target[start:stop] = values.reshape(target[start:stop].shape)
    else:
        _fill(target, name, scale, base, shape, places)
    return output


def _fill(
    target: FloatArray, name: str, scale: float, base: int, shape: tuple[int, ...], places: Sequence[NDArray[np.int64]]
) -> None:
    """Elements at `places` of two or more dimensions, element 0 of which is the stream's `base`."""
    seeds = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], dtype="<u4")
    step = np.float32(np.float32(scale) * np.float32(2.0**-23))
    columns = places[-1].astype(np.uint64)
    lower_columns, last = columns.astype(np.uint32), columns.max()
    outer = np.zeros((), np.uint64)
    for own, size in zip(places[:-1], shape[:-1], strict=True):
        outer = outer[..., None] * np.uint64(size) + own.astype(np.uint64)
    rows, flat = outer.reshape(-1) * np.uint64(shape[-1]) + np.uint64(base), target.reshape(-1, len(columns))
    some = max(1, _CHUNK // len(columns))
    high = np.uint64(32)
    scratch = np.empty((min(some, len(rows)), len(columns)), np.uint32)
    for start in range(0, len(rows), some):
        own = rows[start : start + some, None]
        x = own.astype(np.uint32) + lower_columns
        upper = own >> high
        if (upper != own + last >> high).any():  # a row whose elements have two upper words
            upper = own + columns >> high
        np.bitwise_xor(x, seeds[0], out=x)
        np.add(x, upper.astype(np.uint32) * np.uint32(0x9E3779B9) + seeds[1], out=x)
        _mix(x, scratch[: len(x)])
        _to_float(x, step, flat[start : start + some])


def _runs(places: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where consecutive numbers begin and end."""
    breaks = np.flatnonzero(np.diff(places) != 1) + 1
    edges = [0, *breaks.tolist(), len(places)]
    return list(pairwise(edges))


def counter_weight(name: str, shape: tuple[int, ...], start_row: int = 0, stop_row: int | None = None) -> FloatArray:
    """Rows `start_row` to `stop_row` (along the first dimension) of the final weight instance `name` of `shape`.

    One-dimensional weights are centred at 1 (gains of norms), or at 0 when the name ends in "bias". Returns float32
    [stop_row - start_row, *shape[1:]].
    """
    rows = shape[0] if shape else 1
    stop = rows if stop_row is None else stop_row
    if not 0 <= start_row <= stop <= rows:
        raise ValueError(f"rows {start_row} to {stop} of {rows}")
    row_elements = prod(shape[1:])
    values = counter_values(name, start_row * row_elements, (stop - start_row) * row_elements, weight_scale(shape))
    if len(shape) < 2 and not name.endswith("bias"):
        np.add(values, np.float32(1), out=values)
    return values.reshape((stop - start_row, *shape[1:]) if shape else ())
