"""How long a collective takes: the alpha-beta model (Hockney 1994), rings over the links of a node."""

from __future__ import annotations

from typing import Literal

from .machine import Machine

Collective = Literal["all_reduce", "all_gather"]

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
