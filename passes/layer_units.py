"""The layers of a step as units that a pipeline may be cut between: each round of each repeat is one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ir import module as modules
from ..ir.mlir import ir


@dataclass(frozen=True)
class Unit:
    """Round `turn` of a repeat, which is the `repeat`-th of the step: model layers `layers`."""

    repeat: int
    turn: int
    layers: range


def repeats_of(block: ir.Block) -> list[ir.Operation]:
    """The repeats of a step, in order."""
    return [view.operation for view in block.operations if view.operation.name == "ts.repeat"]


def units(block: ir.Block) -> list[Unit]:
    """All units of a step, in order."""
    return [unit for number, repeat in enumerate(repeats_of(block)) for unit in _rounds(repeat, number)]


def _rounds(repeat: ir.Operation, number: int) -> Iterator[Unit]:
    first, count, stride = (modules.int_attribute(repeat, name) for name in ("first", "count", "stride"))
    for turn in range(count):
        start = first + turn * stride
        yield Unit(number, turn, range(start, start + stride))


def top_of(operation: ir.Operation) -> ir.Operation:
    """The operation of the step's own block that an operation is, or is inside of."""
    while operation.parent is not None and operation.parent.name != "func.func":
        operation = operation.parent
    return operation
