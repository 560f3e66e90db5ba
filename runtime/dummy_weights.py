"""Made-up weights: the counter-based ones that goldens use, and a fast kind for shape-only runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod

import numpy as np

from ..plans.counter_weights import FloatArray, counter_weight
from .host_arrays import NUMPY_TYPES, HostArray, narrowed

DUMMY, COUNTER = "dummy", "counter"

_BLOCK_ELEMENTS = 1 << 22
_THREADS = 2


def as_array(values: FloatArray, dtype: str) -> HostArray:
    """Values rounded to `dtype`."""
    return HostArray(_rounded(values, dtype), dtype)


def counter_array(name: str, shape: tuple[int, ...], dtype: str) -> HostArray:
    """Counter weights of the instance `name` (plans/counter_weights.py), rounded to `dtype`."""
    if not shape:
        return HostArray(_rounded(np.asarray(counter_weight(name, shape)), dtype), dtype)
    values = np.empty(shape, NUMPY_TYPES[dtype])
    rows = max(1, _BLOCK_ELEMENTS // max(1, prod(shape[1:])))

    def fill(start: int) -> None:
        stop = min(start + rows, shape[0])
        values[start:stop] = _rounded(counter_weight(name, shape, start, stop), dtype)

    with ThreadPoolExecutor(_THREADS, "counter-weights") as pool:
        list(pool.map(fill, range(0, shape[0], rows)))
    return HostArray(values, dtype)


def dummy_array(name: str, shape: tuple[int, ...], dtype: str) -> HostArray:
    """Counter weights for the first rows (about 4 million elements), repeated over the rest: as fast as memory."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, prod(shape[1:]))) if shape else 1
    if not shape or shape[0] <= rows:
        return counter_array(name, shape, dtype)
    values = np.empty(shape, NUMPY_TYPES[dtype])
    values[:rows] = _rounded(counter_weight(name, shape, 0, rows), dtype)
    for start in range(rows, shape[0], rows):
        values[start : start + rows] = values[: min(rows, shape[0] - start)]
    return HostArray(values, dtype)


def _rounded(values: FloatArray, dtype: str) -> np.ndarray:
    return narrowed(values) if dtype == "bf16" else values.astype(NUMPY_TYPES[dtype])
