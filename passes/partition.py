"""partition: give every value a placement on the mesh, then prove the result with the SPMD verifier.

On a mesh of one rank every weight and input is replicated and no collective is needed; placements follow from the
operations' sharding rules all the same, so that every later pass sees them in the types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.sharding import REPLICATE, PlacementConflict, results_on_axis
from ..ir.types import Placement, placement_of, with_placement
from ..plans.errors import UsageError
from ..plans.schema import MeshAxis

_LEAVES = {"ts.input", "ts.weight", "ts.constant"}


def partition(module: ir.Module, mesh: Sequence[MeshAxis]) -> ir.Module:
    """Placements for all values, in place.

    Raises UsageError for a mesh of more than one rank: the search for layouts is not built yet.
    """
    for axis in mesh:
        if axis.size != 1:
            raise UsageError(
                "this compiler partitions over one rank only",
                where=f"mesh axis {axis.name}",
                expected="size 1",
                got=f"size {axis.size}",
                fix="compile without --parallel",
            )
    block = modules.step_block(module)
    _place(block, {axis.name: REPLICATE for axis in mesh})
    modules.retype(block)
    modules.verify(module)
    verify_spmd(module)
    return module


def _place(block: ir.Block, leaf: Mapping[str, str]) -> None:
    for view in block.operations:
        operation = view.operation
        if operation.name in _LEAVES:
            with_placement(operation.results[0], leaf)
        elif operation.name == "ts.repeat":
            body = modules.body_of(operation)
            for argument, result, value in zip(body.arguments, operation.results, operation.operands, strict=True):
                with_placement(argument, placement_of(value))
                with_placement(result, placement_of(value))
            _place(body, leaf)
        elif operation.name not in {"ts.yield", "func.return"}:
            for result, placement in zip(operation.results, derive(operation), strict=True):
                with_placement(result, placement)


def derive(operation: ir.Operation) -> list[Placement]:
    """Placements of the results that follow from the operands'."""
    operands = [placement_of(value) for value in operation.operands]
    results: list[Placement] = [{} for _ in operation.results]
    for position, known in enumerate(operands):
        if known.keys() != operands[0].keys():
            axes = f"operand {position} is placed on axes {[*known]}, operand 0 on {[*operands[0]]}"
            raise PlacementConflict(f"{operation.name}: {axes}")
    for axis in operands[0]:
        for placement, found in zip(results, results_on_axis(operation, [known[axis] for known in operands]), strict=True):
            placement[axis] = found
    return results


def verify_spmd(module: ir.Module) -> None:
    """Check every value's placement against its producer's rule, trusting nothing that set it.

    Raises PlacementConflict naming the operation.
    """
    for operation in modules.walk(modules.step_block(module)):
        if operation.name in _LEAVES:
            continue
        if operation.name == "ts.repeat":
            terminator = list(modules.body_of(operation).operations)[-1].operation
            groups = (operation.operands, modules.body_of(operation).arguments, terminator.operands, operation.results)
            for values in zip(*groups, strict=True):
                if len({str(placement_of(value)) for value in values}) != 1:
                    raise PlacementConflict(f"ts.repeat carries a value whose placement changes: {[str(v.type) for v in values]}")
        elif operation.name == "func.return":
            for value in operation.operands:
                if set(placement_of(value).values()) - {REPLICATE}:
                    raise PlacementConflict(f"the step returns {placement_of(value)}, every rank needs it whole")
        elif operation.name != "ts.yield":
            found = [placement_of(value) for value in operation.results]
            if found != derive(operation):
                raise PlacementConflict(
                    f"{operation.name} at {modules.label_of(operation)}: {found}, its rule gives {derive(operation)}"
                )
