"""What the link between a device and page-locked memory of its host carries: stretches, and KV blocks as the tier copies them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tokenspeed.runtime.device.device import Device, Rows

STRETCH = 256 << 20
CACHES, CACHE_BYTES, BLOCK_BYTES = 64, 4 << 20, 128 << 10
"""Of an 8B model in bfloat16: a block of 64 tokens in each of 64 caches. The caches are short here; their blocks are not."""

_REPEATS = 5


def link_rates(device: Device) -> dict[str, Any]:
    """Bytes per second, each the best of some repeats; `both` is the sum of the two directions at once."""
    saving, loading = device.create_stream(), device.create_stream()
    first, second = (device.allocate(STRETCH, "a benchmark", zeroed=False) for _ in range(2))
    started = time.perf_counter()
    pinned = [device.allocate_host(STRETCH, "a benchmark", zeroed=False) for _ in range(2)]
    locking = (time.perf_counter() - started) / 2 / STRETCH
    upload, download = (array.ctypes.data for array in pinned)

    def to_device() -> None:
        device.driver.call("copy_to_device", first, upload, STRETCH, loading)

    def to_host() -> None:
        device.driver.call("copy_to_host", download, second, STRETCH, saving)

    def both() -> None:
        to_device()
        to_host()

    def blocks(each: int, scattered: bool, *, rows: int = CACHES, loads: bool = True) -> Callable[[], None]:
        """Runs of `each` blocks of all caches, `rows` of them in a call, in an order of the device that is not the host's."""
        count = CACHE_BYTES // BLOCK_BYTES
        places = np.random.default_rng(1).permutation(count // each) if scattered else np.arange(count // each)

        def run() -> None:
            for cache in range(0, CACHES, rows):
                for at, place in enumerate(places.tolist()):
                    here = Rows(first + cache * CACHE_BYTES + place * each * BLOCK_BYTES, CACHE_BYTES)
                    there = Rows(upload + cache * CACHE_BYTES + at * each * BLOCK_BYTES, CACHE_BYTES)
                    target, source = (here, there) if loads else (there, here)
                    device.copy_rows(target, source, each * BLOCK_BYTES, rows, loading, to_device=loads)

        return run

    def measured(work: Callable[[], None], count: int) -> dict[str, float]:
        best, asking = float("inf"), float("inf")
        for _ in range(_REPEATS + 1):
            before = time.perf_counter()
            work()
            asked = time.perf_counter()
            device.synchronise(loading)
            device.synchronise(saving)
            best, asking = min(best, time.perf_counter() - before), min(asking, asked - before)
        return {"bytes_per_second": round(count / best), "host_seconds": round(asking, 6)}

    found = {
        "to_device": measured(to_device, STRETCH),
        "to_host": measured(to_host, STRETCH),
        "both": measured(both, 2 * STRETCH),
        "blocks_to_device": measured(blocks(1, scattered=True), STRETCH),
        "blocks_to_host": measured(blocks(1, scattered=True, loads=False), STRETCH),
        "runs_of_8_to_device": measured(blocks(8, scattered=True), STRETCH),
        "blocks_by_layer_to_device": measured(blocks(1, scattered=True, rows=2), STRETCH),
    }
    for array in pinned:
        device.free_host(array)
    for address in (first, second):
        device.free(address)
    return {**found, "page_locking_bytes_per_second": round(1 / locking)}


def memory_rate() -> dict[str, Any]:
    """Of a machine whose caches are in the host's memory: bytes copied per second."""
    source, target = np.zeros(STRETCH, np.uint8), np.zeros(STRETCH, np.uint8)
    best = float("inf")
    for _ in range(_REPEATS + 1):
        before = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - before)
    return {"copy": {"bytes_per_second": round(STRETCH / best)}}
