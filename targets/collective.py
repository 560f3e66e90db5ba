"""How long a collective takes: the alpha-beta model (Hockney 1994), rings over the links of a node.

Where a target has figures of its own for a collective, `latency.NAME` and `link.NAME`, they count: seconds of the smallest
message, and bytes per second that a rank sends of large ones. `exchange` is the sum through each other's memory
(triton/exchange.py), of messages up to the target's limit.
"""

from __future__ import annotations

from math import prod
from typing import Literal, get_args

from ..ir import attributes
from ..ir.mlir import ir
from ..ir.sharding import EXCHANGES
from ..ir.types import dtype_of, shape_of
from ..plans.program import DTYPE_BYTES
from .machine import Figure, Machine

Collective = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all"]

_COLLECTIVES: dict[str, Collective] = {f"ts.{name}": name for name in get_args(Collective)}

LINKS = "alpha-beta model of the links: nominal rates, latencies set, not measured"
"""How the seconds of collectives are known, where a target has no figures of its own."""

_ROUNDS: dict[Collective, int] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}
"""How often a rank sends what is not its own part."""

_HOST_LATENCY, _HOST_SHARE = 50e-6, 0.1
"""Of ranks that are processes of one host: seconds, and the share of the memory's bandwidth. Set, not measured."""

_DEVICE_LATENCY = 12e-6
"""Of a collective in a captured graph. Set, not measured."""


def exchange_seconds(size: float, top_k: int, ranks: int, machine: Machine) -> float | None:
    """Seconds of sending rows, `size` bytes of all ranks together, to the ranks of their `top_k` experts each, or back. Rows are
    put together before and taken apart after.

    None where that is not done: where steps are captured, messages are of fixed size, and then it is what gathering all rows is.
    """
    if "link.peer" in machine.rates:
        return None
    travelling = size * (1 - (1 - 1 / ranks) ** top_k)
    return collective_seconds("all_to_all", travelling, ranks, machine) + 4 * travelling / machine.rates["bandwidth"].value


def collective_seconds(collective: Collective, size: float, ranks: int, machine: Machine) -> float:
    """Seconds of a collective over a value of `size` bytes as it is whole, on all `ranks` of one node."""
    if ranks < 2:
        return 0.0
    latency, bandwidth = _link(collective, machine)
    seconds = latency + _ROUNDS[collective] * (ranks - 1) / ranks * size / bandwidth
    exchanged = _exchange_seconds(size, ranks, machine) if collective == "all_reduce" else None
    return seconds if exchanged is None else exchanged


def how_known(collective: Collective, machine: Machine) -> str:
    """The receipt of a collective's seconds."""
    rate = machine.rates.get(f"link.{collective}")
    if rate is None:
        return LINKS
    exchange = machine.rates.get("link.exchange") if collective == "all_reduce" else None
    return f"alpha-beta model, {rate.basis}: {rate.source}" + ("" if exchange is None else f"; {exchange.source}")


def _link(collective: Collective, machine: Machine) -> tuple[float, float]:
    """Seconds of latency, bytes per second."""
    rates = machine.rates
    if "link.peer" not in rates:
        return _HOST_LATENCY, rates["bandwidth"].value * _HOST_SHARE
    own = rates.get(f"latency.{collective}"), rates.get(f"link.{collective}")
    latency, bandwidth = (None if rate is None else rate.value for rate in own)
    return latency or _DEVICE_LATENCY, bandwidth or rates["link.peer"].value


def _exchange_seconds(size: float, ranks: int, machine: Machine) -> float | None:
    """Of a sum through each other's memory: every rank sends all it has to every other. None where it is not done so."""
    latency, bandwidth = (machine.rates.get(f"{name}.exchange") for name in ("latency", "link"))
    if latency is None or bandwidth is None or ranks > machine.peers or size > machine.most_exchanged:
        return None
    return latency.value + (ranks - 1) * size / bandwidth.value


def crossing_seconds(size: float, machine: Machine) -> float:
    """Seconds that `size` bytes take from a rank of one stage to one of the next."""
    if "link.peer" in machine.rates:
        return _DEVICE_LATENCY + size / machine.rates["link.peer"].value
    return _HOST_LATENCY + size / (machine.rates["bandwidth"].value * _HOST_SHARE)


def collective_of(operation: ir.Operation) -> Collective | None:
    """What an operation is as a collective."""
    return _COLLECTIVES.get(operation.name)


def measured_links(operation: ir.Operation, machine: Machine, _rows: int) -> Figure | None:
    """How a collective's seconds are known on a target that has figures of its own."""
    collective = collective_of(operation)
    if collective is None or f"link.{collective}" not in machine.rates:
        return None
    return Figure(None, how_known(collective, machine))


def seconds_of(operation: ir.Operation, rows: int, machine: Machine, share: float = 1.0) -> float:
    """Seconds of a collective operation over a share of its value at a number of rows (as they are before they are cut), or of
    handing a value on to the next stage; 0 for all other operations, receiving among them: it is the same transfer."""
    if operation.name == "ts.send":
        x = operation.operands[0]
        size = prod(rows if extent is None else extent for extent in shape_of(x)) * DTYPE_BYTES[dtype_of(x)]
        return crossing_seconds(size, machine)
    if operation.name in EXCHANGES:
        (x, indices), ranks = operation.operands, attributes.int_attribute(operation, "ranks")
        size = prod(rows if extent is None else extent for extent in shape_of(x)) * DTYPE_BYTES[dtype_of(x)] * share
        return exchange_seconds(size, shape_of(indices)[1] or 1, ranks, machine) or 0.0
    collective = collective_of(operation)
    if collective is None:
        return 0.0
    whole = operation.results[0] if collective == "all_gather" else operation.operands[0]
    size = prod(rows if extent is None else extent for extent in shape_of(whole)) * DTYPE_BYTES[dtype_of(whole)]
    return collective_seconds(collective, size * share, attributes.int_attribute(operation, "ranks"), machine)
