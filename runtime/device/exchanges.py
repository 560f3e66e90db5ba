"""Memory of each rank that the others on its host write into: allocated, made known to them, theirs mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...plans.device_kernels import Exchange
from ...plans.device_scratch import exchange_bytes
from ...plans.errors import TokenspeedError
from ..mesh import Rank
from .arrays import DeviceArray, dense
from .device import Device
from .errors import DeviceError

Share = Callable[[str, str, bytes], Sequence[bytes]]
"""(mesh axis, name, this rank's bytes) -> those of all ranks along the axis, in order, once they are there."""


def open_exchanges(device: Device, exchanges: Sequence[Exchange], rank: Rank, share: Share) -> Mapping[str, DeviceArray]:
    """What calls read of each: where every rank's begins, and this rank's place among them. All ranks must call it.

    Raises DeviceError where the devices do not reach each other's memory.
    """
    return {item.name: _opened(device, item, rank, share) for item in exchanges}


def _opened(device: Device, exchange: Exchange, rank: Rank, share: Share) -> DeviceArray:
    own = device.allocate(exchange_bytes((exchange,)), exchange.name)
    device.synchronise()  # zeroed, before another rank writes
    place = rank.coordinates[exchange.axis]
    addresses = []
    for other, handle in enumerate(share(exchange.axis, exchange.name, device.handle_of(own))):
        addresses.append(own if other == place else _mapped(device, exchange, other, handle))
    values = np.array([*addresses, place], np.int64)
    table = DeviceArray(device.allocate(values.nbytes, f"{exchange.name}: addresses"), values.shape, dense(values.shape), "i64")
    device.upload(table.address, values)
    device.synchronise()
    return table


def _mapped(device: Device, exchange: Exchange, other: int, handle: bytes) -> int:
    try:
        return device.map_memory(handle, exchange.name)
    except TokenspeedError as error:
        raise DeviceError(
            "The devices of the ranks do not reach each other's memory.",
            where=f"{exchange.name}, of the rank at {other} along {exchange.axis}",
            got=getattr(error, "got", "") or str(error),
            fix="compile the plan with --collectives library; on one host, check how its devices are linked",
        ) from error
