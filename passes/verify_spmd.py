"""The SPMD verifier: trusts nothing that set the placements, and derives them anew from each operation's rule."""

from __future__ import annotations

from ..ir import module as modules
from ..ir.mixture import all_experts, numbers_of
from ..ir.mlir import ir
from ..ir.placements import NESTING, Shard, at_rest, disagreement, parse_shard
from ..ir.sharding import BORDERS, EXCHANGES, PlacementConflict, results_on_axis
from ..ir.types import Placement, placement_of, shape_of

LEAVES = {"ts.input", "ts.weight", "ts.constant"}


def derive(operation: ir.Operation) -> list[Placement]:
    """Placements of the results that follow from the operands'."""
    operands = [placement_of(value) for value in operation.operands]
    results: list[Placement] = [{} for _ in operation.results]
    for position, known in enumerate(operands):
        if known.keys() != operands[0].keys():
            axes = f"operand {position} is placed on axes {[*known]}, operand 0 on {[*operands[0]]}"
            raise PlacementConflict(f"{operation.name}: {axes}")
    for axis in operands[0]:
        derived = results_on_axis(operation, [known[axis] for known in operands], axis)
        for placement, found in zip(results, derived, strict=True):
            placement[axis] = found
    return results


def verify_spmd(module: ir.Module) -> None:
    """Check every value's placement against its producer's rule, trusting nothing that set it.

    Raises PlacementConflict naming the operation.
    """
    for operation in modules.walk(modules.step_block(module)):
        for value in operation.results:
            _check_segments(value)
        for value in operation.results:
            problem = disagreement(placement_of(value))
            if problem:
                raise PlacementConflict(f"{operation.name} at {modules.label_of(operation)}: {problem}")
        if operation.name == "ts.moe_experts":
            _check_numbers(operation)
        if operation.name in EXCHANGES:
            _check_exchange(operation)
        if operation.name == "ts.weight":
            continue
        if operation.name in LEAVES:
            value = operation.results[0]
            if not _is_at_rest(value):
                raise PlacementConflict(f"{operation.name}: {placement_of(value)}, every rank has it whole, or rows of its own")
        elif operation.name == "ts.repeat":
            terminator = list(modules.body_of(operation).operations)[-1].operation
            groups = (operation.operands, modules.body_of(operation).arguments, terminator.operands, operation.results)
            for values in zip(*groups, strict=True):
                if len({str(placement_of(value)) for value in values}) != 1:
                    raise PlacementConflict(f"ts.repeat carries a value whose placement changes: {[str(v.type) for v in values]}")
        elif operation.name == "func.return":
            for value in operation.operands:
                if not _is_at_rest(value):
                    raise PlacementConflict(f"the step returns {placement_of(value)}, every rank needs it whole, or its own rows")
        elif operation.name != "ts.yield" and operation.name not in BORDERS:
            found = [placement_of(value) for value in operation.results]
            if found != derive(operation):
                raise PlacementConflict(
                    f"{operation.name} at {modules.label_of(operation)}: {found}, its rule gives {derive(operation)}"
                )


def _is_at_rest(value: ir.Value) -> bool:
    """Whether it lies as values come into a step and leave it."""
    return all(placement == at_rest(shape_of(value), axis) for axis, placement in placement_of(value).items())


def _check_numbers(operation: ir.Operation) -> None:
    """What says which experts a rank has are numbers of all of the model's, cut like the experts."""
    numbers = numbers_of(operation)
    maker = None if numbers is None else modules.maker_of(numbers)
    if numbers is None:
        return
    count = modules.int_attribute(maker, "count") if maker is not None and "count" in maker.attributes else None
    if maker is None or maker.name != "ts.weight" or modules.text_list(maker, "parameters") or count != all_experts(operation):
        found = "no numbers" if count is None else f"numbers of {count}"
        raise PlacementConflict(
            f"{operation.name} at {modules.label_of(operation)}: {found}, of {all_experts(operation)} experts"
        )


def _check_exchange(operation: ir.Operation) -> None:
    """Rows are sent to the experts that read them, and what is sent back is what those experts made of them. Who has an expert
    follows from its number where the axis is the outermost that cuts experts."""
    axis, where = modules.text_attribute(operation, "axis"), modules.label_of(operation)
    x, indices = operation.operands
    if operation.name == "ts.dispatch":
        mixtures = [user for user, _ in modules.readers_of(operation.results[0])]
        fits = all(user.name == "ts.moe_experts" and user.operands[0] == operation.results[0] for user in mixtures)
    else:
        maker = modules.maker_of(x)
        mixtures = [maker] if maker is not None and maker.name == "ts.moe_experts" else []
        fits = bool(mixtures)
    for mixture in mixtures if fits else []:
        placed = placement_of(mixture.operands[4])
        cut = [other for other in NESTING if parse_shard(placed.get(other, "")) == Shard(0)]
        fits = fits and mixture.operands[1] == indices and cut[:1] == [axis]
        fits = fits and modules.int_attribute(operation, "experts") == all_experts(mixture)
    if not fits:
        raise PlacementConflict(f"{operation.name} at {where}: not of a mixture of these indices whose experts {axis} shares out")


def _check_segments(value: ir.Value) -> None:
    """What a rank has of a cut dimension is the segments that the placement says, no more and no less."""
    for placement in placement_of(value).values():
        cut = parse_shard(placement)
        own = sum(segment.size for segment in cut.segments) if cut is not None and cut.segments else None
        if own is not None and cut is not None and shape_of(value)[cut.dimension : cut.dimension + 1] != (own,):
            raise PlacementConflict(f"{value.type}: the segments of dimension {cut.dimension} are {own} in all")
