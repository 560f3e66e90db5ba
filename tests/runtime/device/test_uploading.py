"""Arrays reach the device whole, whatever their size, and page-locked memory is given back."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.device import uploading
from tokenspeed.runtime.device.arrays import DeviceArena, fetched
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.host_arrays import HostArray

from .fake_driver import FakeDriver


def test_arrays_of_several_chunks(fake: FakeDriver, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "CHUNK_BYTES", 256)
    arena = DeviceArena(device, 1 << 16, "arrays")
    sources = [HostArray(np.arange(rows * 7, dtype=np.float32).reshape(rows, 7) + rows, "f32") for rows in (1, 9, 40, 0)]
    targets = [arena.take(source.shape, "f32") for source in sources]
    held = fake.held
    finished: list[int] = []
    jobs = [(target, lambda source=source: source) for target, source in zip(targets, sources, strict=True)]
    uploading.upload_all(device, jobs, finished.append, threads=1)
    for target, source in zip(targets, sources, strict=True):
        assert np.array_equal(fetched(device, target).data, source.data)
    assert finished == [0, 1, 2, 3] and fake.held == held + 2  # two events stay until the device is closed


def test_what_making_an_array_raises(device: Device) -> None:
    arena = DeviceArena(device, 1 << 16, "arrays")

    def fail() -> HostArray:
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        uploading.upload_all(device, [(arena.take((4,), "f32"), fail)], lambda _at: None, threads=1)
