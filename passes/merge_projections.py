"""fuse: linears that read the same rows become one linear with a joined weight (QKV, gate and up) and windows on its result."""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.arrangement import arrangement_of, set_arrangement
from ..ir.mlir import ir
from ..ir.placements import Segment, Shard, parse_shard
from ..ir.types import Placement, dtype_of, placement_of, shape_of, tensor, with_placement
from .verify_spmd import derive


def merge_projections(module: ir.Module) -> ir.Module:
    """Join linears of one block that share their input; in place."""
    for block in _blocks(modules.step_block(module)):
        groups: dict[tuple[ir.Value, int, str], list[ir.Operation]] = {}
        for view in block.operations:
            operation = view.operation
            if operation.name == "ts.linear" and not _routes(operation):
                layout = ",".join(arrangement_of(modules.made_by(operation.operands[1]))) + _cut_alike(operation.operands[1])
                groups.setdefault((operation.operands[0], len(operation.operands), layout), []).append(operation)
        for group in groups.values():
            if len(group) > 1:
                _merge(group)
    modules.erase_unused(modules.step_block(module))
    return module


def _routes(linear: ir.Operation) -> bool:
    """Routers of a mixture of experts stay by themselves: some models keep them in another type than what reads the same rows."""
    return any(user.name == "ts.moe_route" for user, _ in modules.readers_of(linear.results[0]))


def _cut_alike(weight: ir.Value) -> str:
    """Equal for weights that can be joined: along each axis both are cut between rows, or both lie the same otherwise."""
    return str(
        {
            axis: "rows" if (cut := parse_shard(placement)) and cut.dimension == 0 else placement
            for axis, placement in placement_of(weight).items()
        }
    )


def _blocks(block: ir.Block) -> list[ir.Block]:
    inner = [modules.body_of(view.operation) for view in block.operations if view.operation.name == "ts.repeat"]
    return [block, *inner]


def _merge(group: list[ir.Operation]) -> None:
    x = group[0].operands[0]
    with ir.InsertionPoint(group[0]):
        weight = _join([linear.operands[1] for linear in group])
        bias = [_join([linear.operands[2] for linear in group])] if len(group[0].operands) > 2 else []
        width = shape_of(weight)[0]
        merged = dialect.Linear(tensor(dtype_of(x), [None, width]), x, weight, bias)
        with_placement(merged.res, derive(merged.operation)[0])
        modules.set_label(merged.operation, joined_name([modules.label_of(linear) for linear in group]))
        start = 0
        for linear in group:
            part = dialect.Slice(linear.results[0].type, merged.res, modules.integer(start))
            modules.set_label(part.operation, modules.label_of(linear))
            start += shape_of(linear.results[0])[1] or 0
            linear.results[0].replace_all_uses_with(part.res)
    for linear in group:
        linear.erase()


def _join(weights: list[ir.Value]) -> ir.Value:
    owners = [modules.made_by(weight) for weight in weights]
    rows = sum(shape_of(weight)[0] or 0 for weight in weights)
    kind = tensor(dtype_of(weights[0]), [rows, *shape_of(weights[0])[1:]], _joined_placement(weights))
    parts = [part for owner in owners for part in modules.text_list(owner, "parameters")]
    sym = modules.text(joined_name([modules.text_attribute(owner, "sym") for owner in owners]))
    joined = dialect.Weight(kind, sym, ir.ArrayAttr.get([modules.text(part) for part in parts])).res
    set_arrangement(modules.made_by(joined), arrangement_of(owners[0]))
    return joined


def _joined_placement(weights: list[ir.Value]) -> Placement:
    """What was cut between rows is now cut segment by segment."""
    joined: Placement = {}
    for axis, placement in placement_of(weights[0]).items():
        cuts = [parse_shard(placement_of(weight)[axis]) for weight in weights]
        segments = [
            segment
            for cut, weight in zip(cuts, weights, strict=True)
            if cut is not None and cut.dimension == 0
            for segment in cut.segments or (Segment(shape_of(weight)[0] or 0, cut.copies),)
        ]
        joined[axis] = str(Shard(0, segments=tuple(segments))) if segments else placement
    return joined


def joined_name(names: list[str]) -> str:
    """a.q_proj.weight, a.k_proj.weight -> a.q_proj+k_proj.weight."""
    split = [name.split(".") for name in names]
    if len({len(parts) for parts in split}) == 1:
        columns = [dict.fromkeys(column) for column in zip(*split, strict=True)]
        if sum(len(column) > 1 for column in columns) == 1:
            return ".".join("+".join(column) for column in columns)
    return "+".join(names)
