"""Prepared launches and captured graphs, on a fake driver library whose kernels compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenspeed.plans.device_kernels import (
    CeilDivide,
    Computed,
    Constant,
    DeviceFunction,
    DeviceKernel,
    DevicePlan,
    KernelReceipt,
    Pointer,
    Product,
    Scratch,
    Variant,
)
from tokenspeed.plans.errors import PlanError
from tokenspeed.runtime.device.arrays import DeviceArena, DeviceArray, fetched
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.errors import DeviceError, DeviceLost
from tokenspeed.runtime.device.kernels import DeviceKernels
from tokenspeed.runtime.host_arrays import HostArray

from .fake_driver import FakeDriver, entry_name

RECEIPT = KernelReceipt(compiler="triton", version="3.6.0", registers=32, spills=0)
ADD = (*(Pointer(operand, "f32", 16) for operand in range(3)), Computed(Product(("rows", 4)), 4))
VALUES = np.arange(32, dtype=np.float32).reshape(8, 4)


def kernel(fake: FakeDriver, **changes: Any) -> DeviceKernel:
    given: dict[str, Any] = {
        "name": "add",
        "entry": entry_name(fake.binary(), fake.vendor),
        "symbol": "add_f32",
        "warps": 4,
        "shared_bytes": 1024,
        "parameters": ADD,
        "grid": (CeilDivide("rows", 4), 1, 1),
        "receipt": RECEIPT,
    }
    return DeviceKernel(**{**given, **changes})


def loaded(fake: FakeDriver, device: Device, *kernels: DeviceKernel, scratch: int = 0) -> DeviceKernels:
    """Kernels of the function `add`, by ascending rows: up to 4, 8, ... of them."""
    variants = tuple(Variant(most=4 * (at + 1), kernel=item.name) for at, item in enumerate(kernels))
    function = DeviceFunction(name="add", inputs=("f32", "f32"), outputs=("f32",), variants=variants)
    plan = DevicePlan(
        vendor=fake.vendor,
        architecture=fake.architecture,
        memory_bytes=1 << 30,
        graph_rows=(),
        functions=(function,),
        kernels=kernels,
    )
    return DeviceKernels(device, plan, lambda _: fake.binary(), scratch)


def operands(device: Device) -> list[DeviceArray]:
    arena = DeviceArena(device, 3 * VALUES.nbytes, "operands")
    return [arena.put(HostArray(VALUES, "f32")), arena.put(HostArray(VALUES * 10, "f32")), arena.take((8, 4), "f32")]


def symbols(rows: int) -> dict[str, int]:
    return {"rows": rows, "logit_rows": rows}


def test_a_launch_computes_with_its_shape(fake: FakeDriver, device: Device) -> None:
    arrays = operands(device)
    (launch,) = loaded(fake, device, kernel(fake), kernel(fake, name="large")).prepare("device.add", symbols(7), arrays, "layer")
    fake.clear_log()
    launch()
    assert fake.log() == [f"launch add_f32 grid 2 1 1 block {128 if fake.vendor == 'cuda' else 256} shared 1024"]
    assert np.array_equal(fetched(device, arrays[2]).data[:7], 11 * VALUES[:7])
    assert not fetched(device, arrays[2]).data[7:].any()


def test_scalars_of_every_kind(fake: FakeDriver, device: Device) -> None:
    scale = (Pointer(0, "f32"), Pointer(2, "f32"), Constant("f32", 0.5), Constant("i64", 32))
    arrays = operands(device)
    for launch in loaded(fake, device, kernel(fake, symbol="scale_f32", parameters=scale)).prepare(
        "device.add", symbols(1), arrays, ""
    ):
        launch()
    assert np.array_equal(fetched(device, arrays[2]).data, VALUES / 2)


def test_an_empty_grid_is_not_launched(fake: FakeDriver, device: Device) -> None:
    assert loaded(fake, device, kernel(fake)).prepare("device.add", symbols(0), operands(device), "") == ()


def test_large_shared_memory_is_asked_for_where_it_must_be(fake: FakeDriver, device: Device) -> None:
    kernels = loaded(fake, device, kernel(fake, shared_bytes=60 << 10))
    for launch in kernels.prepare("device.add", symbols(1), operands(device), ""):
        launch()
    asked = [line for line in fake.log() if line.startswith("set attribute")]
    assert asked == (["set attribute 8 of add_f32 to 61440"] if fake.vendor == "cuda" else [])


def test_dependent_launches_and_clusters(fake: FakeDriver, device: Device) -> None:
    kernels = loaded(fake, device, kernel(fake, cluster=2, dependent_launch=True))
    if fake.vendor == "hip":
        with pytest.raises(PlanError, match="cannot run"):
            kernels.prepare("device.add", symbols(4), operands(device), "")
        return
    arrays = operands(device)
    (launch,) = kernels.prepare("device.add", symbols(4), arrays, "")
    launch()
    assert fake.log()[-1] == ("launch add_f32 grid 2 1 1 block 128 shared 1024 attribute 4 = 2 attribute 5 = 1 attribute 6 = 1")
    assert np.array_equal(fetched(device, arrays[2]).data[:4], 11 * VALUES[:4])


def test_scratch_is_within_what_was_allocated(fake: FakeDriver, device: Device) -> None:
    """The fake driver refuses scratch outside of an allocation."""
    scratch = device.allocate(1024, "scratch")
    both = {"global_scratch": Scratch(bytes=100, alignment=128), "profile_scratch": Scratch(bytes=8, alignment=8)}
    for launch in loaded(fake, device, kernel(fake, **both), scratch=scratch).prepare(
        "device.add", symbols(4), operands(device), ""
    ):
        launch()


@pytest.mark.parametrize(
    ("function", "rows", "changes", "shift", "message"),
    [
        ("device.add", 5, {}, 0, "a device function of the plan for this bucket"),
        ("device.other", 1, {}, 0, "a device function of the plan for this bucket"),
        ("device.add", 1, {}, 1, "operand 0 at a multiple of 16 bytes"),
        ("device.add", 3, {"parameters": (*ADD[:3], Computed("rows", 2))}, 0, "a number divisible by 2"),
    ],
)
def test_what_the_code_relies_on_is_checked(
    fake: FakeDriver, device: Device, function: str, rows: int, changes: dict[str, Any], shift: int, message: str
) -> None:
    arrays = [array.strided(shift, (7, 4), (4, 1)) for array in operands(device)]
    with pytest.raises(PlanError, match=message):
        loaded(fake, device, kernel(fake, **changes)).prepare(function, symbols(rows), arrays, "layer")


def test_operands_of_another_type_are_refused(fake: FakeDriver, device: Device) -> None:
    with pytest.raises(PlanError, match=r"operands of \['f32', 'f32', 'f32'\]"):
        loaded(fake, device, kernel(fake)).prepare("device.add", symbols(1), operands(device)[:2], "")


def test_captured_launches_run_when_replayed(fake: FakeDriver, device: Device) -> None:
    arrays = operands(device)
    kernels = loaded(fake, device, kernel(fake))
    twice = kernels.prepare("device.add", symbols(4), arrays, "") + kernels.prepare(
        "device.add", symbols(4), [arrays[2], arrays[0], arrays[2]], ""
    )
    replay = device.capture(twice, "bucket of 4 rows")
    assert not fetched(device, arrays[2]).data.any()
    for _ in range(2):
        replay()
        assert np.array_equal(fetched(device, arrays[2]).data[:4], 12 * VALUES[:4])
    assert fake.log().count("launch graph of 2 nodes") == 2


def test_a_capture_that_fails_leaves_the_stream_usable(fake: FakeDriver, device: Device) -> None:
    arrays = operands(device)
    launches = loaded(fake, device, kernel(fake)).prepare("device.add", symbols(4), arrays, "layer 3")
    fake.fail(2, 1)  # the launch, after the capture's begin
    with pytest.raises(DeviceError, match="layer 3"):
        device.capture(launches, "bucket")
    device.synchronise()
    device.capture(launches, "bucket")()
    assert np.array_equal(fetched(device, arrays[2]).data[:4], 11 * VALUES[:4])


def test_a_kernel_that_faults_loses_the_device(library: FakeDriver, vendor: Any) -> None:
    library.reset(vendor)
    device = library.device()
    kernels = loaded(library, device, kernel(library, symbol="fault", parameters=(Pointer(2, "f32"),)))
    (launch,) = kernels.prepare("device.add", symbols(1), operands(device), "layer 7")
    launch()
    with pytest.raises(DeviceLost):
        device.synchronise()
    with pytest.raises(DeviceLost, match="layer 7"):
        launch()
    device.close()
