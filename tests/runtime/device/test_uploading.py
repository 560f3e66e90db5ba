"""Arrays reach the device whole, whatever their size, and page-locked memory is given back."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.runtime.device import uploading
from tokenspeed.runtime.device.arrays import DeviceArena, fetched
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.errors import DeviceMemoryError
from tokenspeed.runtime.host_arrays import HostArray

from .fake_driver import FakeDriver


def test_arrays_of_several_chunks(fake: FakeDriver, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "CHUNK_BYTES", 256)
    arena = DeviceArena(device, 1 << 16, "arrays")
    sources = [HostArray(np.arange(rows * 7, dtype=np.float32).reshape(rows, 7) + rows, "f32") for rows in (1, 9, 40, 0)]
    targets = [arena.take(source.shape, "f32") for source in sources]
    held = fake.held
    finished: list[int] = []
    jobs = [(target, lambda source=source: [source]) for target, source in zip(targets, sources, strict=True)]
    uploading.upload_all(device, jobs, finished.append, threads=1)
    for target, source in zip(targets, sources, strict=True):
        assert np.array_equal(fetched(device, target).data, source.data)
    assert finished == [0, 1, 2, 3] and fake.held == held


def test_what_making_an_array_raises(device: Device) -> None:
    arena = DeviceArena(device, 1 << 16, "arrays")

    def fail() -> list[HostArray]:
        raise ValueError("no such tensor")

    with pytest.raises(ValueError, match="no such tensor"):
        uploading.upload_all(device, [(arena.take((4,), "f32"), fail)], lambda _at: None, threads=1)


def test_lanes_are_given_back_when_one_cannot_be_made(fake: FakeDriver, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "CHUNK_BYTES", 256)
    target = DeviceArena(device, 1 << 16, "arrays").take((4,), "f32")
    held = fake.held
    fake.fail(6, 2)  # the first call for the second lane
    with pytest.raises(DeviceMemoryError):
        uploading.upload_all(device, [(target, list)], lambda _at: None, threads=2)
    assert fake.held == held


def test_pieces_lie_one_after_another(device: Device) -> None:
    target = DeviceArena(device, 1 << 16, "arrays").take((2, 3), "f32")
    pieces = [HostArray(np.full((1, 3), value, np.float32), "f32") for value in (1, 2)]
    uploading.upload_all(device, [(target, lambda: pieces)], lambda _at: None, threads=1)
    assert fetched(device, target).data.tolist() == [[1, 1, 1], [2, 2, 2]]


def test_weights_on_their_way_end_before_they_settle_and_tell_what_went_wrong() -> None:
    def fail() -> None:
        raise ValueError("no such tensor")

    loading = uploading.WeightsOnTheirWay({}, fail)
    loading.settle()
    with pytest.raises(ValueError, match="no such tensor"):
        loading.wait()
