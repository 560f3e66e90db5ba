"""The driver's calls, errors and memory, on a fake driver library."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.device.arrays import DeviceArena, fetched
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.driver import Driver
from tokenspeed.runtime.device.errors import DeviceError, DeviceLost, DeviceMemoryError
from tokenspeed.runtime.host_arrays import HostArray

from .fake_driver import FakeDriver, elf_image


def test_a_device_says_what_it_is(fake: FakeDriver, device: Device) -> None:
    assert device.name == "Fake accelerator"
    assert device.architecture == ("sm_90" if fake.vendor == "cuda" else "gfx942")
    free, total = device.memory()
    assert free == total == 1 << 30
    assert fake.log()[0] == "init 0"


def test_arrays_come_back_as_they_were_sent(device: Device) -> None:
    arena = DeviceArena(device, 256 + 64, "test")
    values = HostArray(np.arange(64, dtype=np.float32).reshape(8, 8), "f32")
    array = arena.put(values)
    assert np.array_equal(fetched(device, array).data, values.data)
    # a column, a view of the second row on, and the first rows
    assert fetched(device, array.strided(3, (8,), (8,))).data.tolist() == values.data[:, 3].tolist()
    assert fetched(device, array.first(2)).data.tolist() == values.data[:2].tolist()
    assert fetched(device, array.first(0)).data.shape == (0, 8)
    assert fetched(device, arena.take((3,), "bf16")).data.tolist() == [0, 0, 0]
    assert arena.used == arena.size
    with pytest.raises(PlanError, match="more device memory than it says"):
        arena.take((1,), "u8")


def test_events_measure_time(device: Device) -> None:
    start, end = device.create_event(timed=True), device.create_event(timed=True)
    device.record(start)
    device.record(end)
    device.wait(end)
    assert device.seconds_between(start, end) == pytest.approx(0.0025)


def test_too_little_memory_says_for_what(fake: FakeDriver, device: Device) -> None:
    fake.be(memory_bytes=1000)
    with pytest.raises(DeviceMemoryError, match=r"(?s)KV caches, 2000 bytes.*2, ERROR_OUT_OF_MEMORY.*ends? what else"):
        device.allocate(2000, "KV caches")


def test_each_failing_call_is_a_typed_error(fake: FakeDriver) -> None:
    """Opening a device, using and closing it, with every call failing once: nothing else is raised, nothing is held after."""
    for nth in range(1, 40):
        fake.reset(fake.vendor)
        fake.fail(nth, 304)
        device = None
        try:
            device = fake.device()
            address = device.allocate(64, "test")
            device.allocate_host(64, "test")
            device.upload(address, np.zeros(16, np.float32))
            device.load_function(fake.binary(), "copy_f32", 60 << 10, "kernel")
            device.capture((), "nothing")()
            device.synchronise()
        except DeviceError as error:
            assert error.code == 304 and "304, unknown: as the fake driver was told" in error.got and error.fix
        finally:
            if device is not None:
                device.close()
        assert fake.problem == ""
    fake.reset(fake.vendor)


def test_a_lost_device_is_told_apart(fake: FakeDriver, device: Device) -> None:
    fake.fail(1, 700)
    with pytest.raises(DeviceLost, match="ILLEGAL_ADDRESS") as failure:
        device.synchronise()
    assert failure.value.exit_code == 9 and "start the server again" in failure.value.fix


def test_a_binary_for_another_machine_names_the_kernel(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"(?s)kernel norm.*209, ERROR_NO_BINARY.*compile the plan for this device"):
        device.load_module(elf_image(62), "kernel norm")


def test_a_symbol_that_is_not_there_is_named(fake: FakeDriver, device: Device) -> None:
    with pytest.raises(DeviceError, match=r"symbol nothing"):
        device.load_function(fake.binary(), "nothing", 0, "kernel norm")


def test_a_device_that_is_not_there(fake: FakeDriver) -> None:
    with pytest.raises(DeviceError, match=r"(?s)There is no such device.*one of 1 devices"):
        Device(fake.driver(), 1)


def test_no_driver_at_all(vendor: str) -> None:
    with pytest.raises(DeviceError, match=r"(?s)There is no (CUDA|HIP) driver.*libnone\.so.*--target cpu"):
        Driver.open(vendor, ("libnone.so",))


def test_a_driver_that_is_too_old() -> None:
    with pytest.raises(DeviceError, match=r"(?s)too old.*a function cuInit"):
        Driver.open("cuda", ("libc.so.6",))
