"""How long a collective takes: the alpha-beta model (Hockney 1994), rings over the links of a node."""

from __future__ import annotations

from math import prod
from typing import Literal

from ..ir import attributes
from ..ir.mlir import ir
from ..ir.sharding import COLLECTIVES
from ..ir.types import dtype_of, shape_of
from ..plans.program import DTYPE_BYTES
from .machine import Machine

Collective = Literal["all_reduce", "all_gather"]

LINKS = "alpha-beta model of the links: nominal rates, latencies set, not measured"
"""How the seconds of collectives are known."""

_HOST_LATENCY, _HOST_SHARE = 50e-6, 0.1
"""Of ranks that are processes of one host: seconds, and the share of the memory's bandwidth. Set, not measured."""

_DEVICE_LATENCY = 12e-6
"""Of a collective in a captured graph. Set, not measured."""


def collective_seconds(collective: Collective, size: float, ranks: int, machine: Machine) -> float:
    """Seconds of a collective over a value of `size` bytes as it is afterwards, on all `ranks` of one node."""
    if ranks < 2:
        return 0.0
    if "link.peer" in machine.rates:
        latency, bandwidth = _DEVICE_LATENCY, machine.rates["link.peer"].value
    else:
        latency, bandwidth = _HOST_LATENCY, machine.rates["bandwidth"].value * _HOST_SHARE
    rounds = 2 if collective == "all_reduce" else 1
    return latency + rounds * (ranks - 1) / ranks * size / bandwidth


def crossing_seconds(size: float, machine: Machine) -> float:
    """Seconds that `size` bytes take from a rank of one stage to one of the next."""
    if "link.peer" in machine.rates:
        return _DEVICE_LATENCY + size / machine.rates["link.peer"].value
    return _HOST_LATENCY + size / (machine.rates["bandwidth"].value * _HOST_SHARE)


def seconds_of(operation: ir.Operation, rows: int, machine: Machine, share: float = 1.0) -> float:
    """Seconds of a collective operation over a share of its value at a number of rows, or of handing a value on to the next
    stage; 0 for all other operations, receiving among them: it is the same transfer."""
    if operation.name == "ts.send":
        x = operation.operands[0]
        size = prod(rows if extent is None else extent for extent in shape_of(x)) * DTYPE_BYTES[dtype_of(x)]
        return crossing_seconds(size, machine)
    if operation.name not in COLLECTIVES:
        return 0.0
    whole = operation.results[0]
    size = prod(rows if extent is None else extent for extent in shape_of(whole)) * DTYPE_BYTES[dtype_of(whole)]
    collective: Collective = "all_reduce" if operation.name == "ts.all_reduce" else "all_gather"
    return collective_seconds(collective, size * share, attributes.int_attribute(operation, "ranks"), machine)
