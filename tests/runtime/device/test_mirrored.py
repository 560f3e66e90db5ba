"""Arrays that the host writes: two turns of step inputs, one row of the slot buffers at a time."""

from __future__ import annotations

import numpy as np
import pytest
from tokenspeed.plans.program import Buffer, StepInput
from tokenspeed.runtime.device import mirrored
from tokenspeed.runtime.device.arrays import DeviceArena, fetched
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.mirrored import SlotRows, StepInputs

ITEMS = (StepInput("ids", "i32", (3,)), StepInput("places", "i64", (2, 2)))


def test_step_inputs_are_written_in_turns_and_go_over_whole(device: Device) -> None:
    inputs = StepInputs(device, DeviceArena(device, 1 << 10, "inputs"), ITEMS)
    first = inputs.next()
    first["ids"].data[:], first["places"].data[:] = [1, 2, 3], [[4, 5], [6, 7]]
    inputs.upload()
    second = inputs.next()
    second["ids"].data[:] = 9  # while the first are still on their way
    assert first["ids"].data.tolist() == [1, 2, 3]
    assert fetched(device, inputs.arrays["ids"]).data.tolist() == [1, 2, 3]
    assert fetched(device, inputs.arrays["places"]).data.tolist() == [[4, 5], [6, 7]]
    inputs.upload()
    assert fetched(device, inputs.arrays["ids"]).data.tolist() == [9, 9, 9]
    assert inputs.next()["ids"] is first["ids"]


def test_a_slot_takes_its_own_row_along_and_no_other(device: Device) -> None:
    slots = SlotRows(device, DeviceArena(device, 1 << 10, "slots"), (Buffer("seed", "i64", (4,)), Buffer("ends", "i32", (4, 2))))
    slots.host["seed"].data[:], slots.host["ends"].data[:] = [1, 2, 3, 4], np.arange(8).reshape(4, 2)
    slots.wait(2)
    slots.upload(2, ("seed", "ends"))
    assert fetched(device, slots.arrays["seed"]).data.tolist() == [0, 0, 3, 0]
    assert fetched(device, slots.arrays["ends"]).data.tolist() == [[0, 0], [0, 0], [4, 5], [0, 0]]


def test_long_rows_go_over_when_they_are_named(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrored, "_LONG_ROW_BYTES", 8)
    slots = SlotRows(
        device, DeviceArena(device, 1 << 10, "slots"), (Buffer("seed", "i64", (3,)), Buffer("counts", "i32", (3, 5)))
    )
    for row in (1, 2):
        slots.host["seed"].data[row], slots.host["counts"].data[row] = row, np.arange(5) * row
    slots.upload(1, ("seed", "counts"))
    slots.upload(2, ("seed",))
    assert fetched(device, slots.arrays["seed"]).data.tolist() == [0, 1, 2]
    assert fetched(device, slots.arrays["counts"]).data.tolist() == [[0] * 5, [0, 1, 2, 3, 4], [0] * 5]
