"""partition: lay the model out over the mesh, one axis after the other, then prove the result with the SPMD verifier.

Every value gets a placement in its type and the shape that each rank has of it; where placements change there is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from ..ir import module as modules
from ..ir.mlir import ir
from ..plans.schema import MeshAxis
from .number_experts import number_experts
from .placing.apply import apply
from .placing.costs import Prices
from .placing.pins import Pins
from .placing.search import ENDS, LEAVES, Choice, search
from .placing.strategies import EXPERT_AXES, strategies
from .verify_spmd import verify_spmd


def partition(
    module: ir.Module, mesh: Sequence[MeshAxis], prices: Prices | None = None, pins: Pins | None = None
) -> tuple[Choice, ...]:
    """Placements for all values, in place; gives back what was chosen along axes of several ranks.

    `prices` judge the layouts of such axes; `pins` say what the user wants of them. Raises UsageError or MemoryPlanError when
    there is none.
    """
    chosen: list[Choice] = []
    if any(axis.size > 1 and axis.name in EXPERT_AXES for axis in mesh):
        number_experts(module)
    for at, axis in enumerate(mesh):
        if axis.size == 1:
            apply(module, axis.name, 1, {operation: strategies(operation, axis.name, 1)[0] for operation in _operations(module)})
            continue
        assert prices is not None
        of_axis = replace(prices, axis=axis.name, ranks=axis.size, further=prod(inner.size for inner in mesh[at + 1 :]))
        found = search(module, axis.name, of_axis, (pins or Pins()).along(axis.name))
        apply(module, axis.name, axis.size, {operation: choice.strategy for operation, choice in found.items()})
        chosen += (choice for operation, choice in found.items() if operation.name != "ts.repeat")
    verify_spmd(module)
    return tuple(chosen)


def _operations(module: ir.Module) -> list[ir.Operation]:
    return [item for item in modules.walk(modules.step_block(module)) if item.name not in ENDS | LEAVES]
