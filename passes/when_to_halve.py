"""From how many rows on layers in halves pay: what sums over ranks take beside the other half, and what halves cost more."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import dtype_of
from ..targets.collective import seconds_of
from ..targets.cost import FREE, cost_of
from ..targets.machine import Machine
from ..targets.roofline import roofline
from .halve_rows import ROW_BY_ROW
from .schedule import BucketSize
from .select import times_of

_BESIDE = 0.75
"""Of four sums of halves in a layer the last one is waited for."""


def least_rows(module: ir.Module, machine: Machine, sizes: Sequence[BucketSize], *, native: bool) -> int | None:
    """The smallest bucket from which on halves pay in all; None where they do not."""
    found: int | None = None
    for size in sorted(sizes, key=lambda size: size.rows, reverse=True):
        if saved_seconds(module, machine, size.rows, native=native) <= 0:
            break
        found = size.rows
    return found


def saved_seconds(module: ir.Module, machine: Machine, rows: int, *, native: bool) -> float:
    """What a step of so many rows is expected to save."""
    half = -(-rows // 2)
    travelling = computing = more = 0.0
    for operation in modules.walk(modules.step_block(module)):
        if operation.name not in ROW_BY_ROW or operation.parent.name != "ts.repeat" or operation.name in FREE:
            continue
        times = times_of(operation)
        if operation.name == "ts.all_reduce":
            whole, halves = seconds_of(operation, rows, machine), 2 * seconds_of(operation, half, machine)
            travelling += times * halves
        else:
            whole, halves = _seconds(operation, rows, machine), 2 * _seconds(operation, half, machine)
            computing += times * halves
        more += times * (halves - whole + machine.dispatch(native))
    return min(_BESIDE * travelling, computing) - more


def _seconds(operation: ir.Operation, rows: int, machine: Machine) -> float:
    return roofline(cost_of(operation, rows), machine, map(dtype_of, operation.results), native=True).limit
