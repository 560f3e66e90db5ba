"""Made-up weights: the counter-based ones that goldens use, and a fast kind for shape-only runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import prod

import torch

from ..plans.counter_weights import counter_weight

DUMMY, COUNTER = "dummy", "counter"

_BLOCK_ELEMENTS = 1 << 22
_THREADS = 2


def counter_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Counter weights of the instance `name` (plans/counter_weights.py), rounded to `dtype`."""
    values = torch.empty(shape, dtype=dtype)
    if not shape:
        values.copy_(torch.from_numpy(counter_weight(name, shape)))
        return values
    rows = max(1, _BLOCK_ELEMENTS // max(1, prod(shape[1:])))

    def fill(start: int) -> None:
        stop = min(start + rows, shape[0])
        with torch.inference_mode():  # a mode of each thread
            values[start:stop] = torch.from_numpy(counter_weight(name, shape, start, stop))

    with ThreadPoolExecutor(_THREADS, "counter-weights") as pool:
        list(pool.map(fill, range(0, shape[0], rows)))
    return values


def dummy_tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Counter weights for the first rows (about 4 million elements), repeated over the rest: as fast as memory."""
    rows = max(1, _BLOCK_ELEMENTS // max(1, prod(shape[1:]))) if shape else 1
    if not shape or shape[0] <= rows:
        return counter_tensor(name, shape, dtype)
    values = torch.empty(shape, dtype=dtype)
    values[:rows] = torch.from_numpy(counter_weight(name, shape, 0, rows))
    for start in range(rows, shape[0], rows):
        values[start : start + rows] = values[: min(rows, shape[0] - start)]
    return values
