"""Stretches of a weight in blocks go to their places in each plane, whatever they are packed from and wherever they are cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pytest
from tokenspeed.plans.weight_layout import row_bytes, stored_bytes
from tokenspeed.runtime.device import uploading
from tokenspeed.runtime.device.arrays import DeviceArena, DeviceArray
from tokenspeed.runtime.device.device import Device, Launch
from tokenspeed.runtime.host_arrays import HostArray

from .fake_driver import FakeDriver


class Kernels:
    """Keeps what is asked for in place of launching it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, list[DeviceArray]]] = []

    def prepare(
        self, function: str, symbols: Mapping[str, int], operands: Sequence[DeviceArray], label: str, stream: int | None
    ) -> tuple[Launch, ...]:
        self.asked.append((function, symbols["rows"], list(operands)))
        return ()


@pytest.mark.parametrize(("dtype", "function"), [("bf16", "device.pack.bf16.q4_1.c64"), ("q4_k", "device.pack.q4_k.q4_1.c64")])
def test_places_in_planes(fake: FakeDriver, device: Device, monkeypatch: pytest.MonkeyPatch, dtype: str, function: str) -> None:
    monkeypatch.setattr(uploading, "CHUNK_BYTES", 3 * row_bytes(256, dtype) + 100)
    arena, kernels = DeviceArena(device, 1 << 16, "weights"), Kernels()
    arena.take((3,), "u8")
    target = arena.take((10, 512), "q4_1")
    assert target.nbytes == stored_bytes((10, 512), "q4_1", "planes")
    # two tensors of the checkpoint make the weight, of 12 and of 8 times 256 elements
    pieces = [HostArray(np.zeros(count * row_bytes(256, dtype), np.uint8), dtype) for count in (12, 8)]
    uploading.upload_all(device, [(target, lambda: pieces)], lambda _at: None, cast(Any, kernels), threads=1)
    blocks, first = 10 * 512 // 32, 0
    for name, count, (source, codes, scales, minimums) in kernels.asked:
        assert name == function and source.dtype == ("u8" if dtype == "q4_k" else dtype)
        assert codes.address == target.address + 16 * first
        assert scales.address == target.address + 16 * blocks + 2 * first
        assert minimums.address == target.address + 18 * blocks + 2 * first
        first += count
    assert [count for _, count, _ in kernels.asked] == [24, 24, 24, 24, 24, 24, 16] and first == blocks
