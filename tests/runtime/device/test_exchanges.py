"""Memory that ranks write of each other: made known, mapped, given back; over the fake driver, in one process."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
from tokenspeed.plans.device_kernels import Exchange
from tokenspeed.plans.schema import MeshAxis
from tokenspeed.runtime.device.device import Device
from tokenspeed.runtime.device.errors import DeviceError
from tokenspeed.runtime.device.exchanges import open_exchanges
from tokenspeed.runtime.mesh import Rank

from .fake_driver import FakeDriver

EXCHANGE = Exchange(name="exchange.tp", axis="tp", bytes=4096)
SECOND = Rank((MeshAxis(name="tp", size=3),), 1)


def test_addresses_of_all_ranks_and_the_own_place(device: Device) -> None:
    others = [device.allocate(64, "another rank's") for _ in range(2)]

    def share(axis: str, name: str, own: bytes) -> Sequence[bytes]:
        assert (axis, name) == ("tp", EXCHANGE.name)
        return [device.handle_of(others[0]), own, device.handle_of(others[1])]

    table = open_exchanges(device, (EXCHANGE,), SECOND, share)[EXCHANGE.name]
    first, own, last, place = (ctypes.c_int64 * 4).from_address(table.address)
    assert (first, last, place, table.shape, table.dtype) == (others[0], others[1], 1, (4,), "i64")
    assert bytes((ctypes.c_ubyte * 4096).from_address(own)) == bytes(4096)


def test_devices_that_do_not_reach_each_other(fake: FakeDriver, device: Device) -> None:
    def share(_axis: str, _name: str, own: bytes) -> Sequence[bytes]:
        fake.fail(1, 500)
        return [own, own, own]

    with pytest.raises(DeviceError, match="--collectives library"):
        open_exchanges(device, (EXCHANGE,), SECOND, share)
