"""partition: rows of which each rank has some travel to the ranks of their experts and back, where that beats gathering all.

Partitioning gathers the rows of all ranks for a mixture whose experts they share out, and scatters the sum (all-gather and
reduce-scatter). Where a row goes to few of the ranks, it is sent to those alone (all-to-all).
"""

from __future__ import annotations

from ..ir import dialect
from ..ir import module as modules
from ..ir.mixture import all_experts
from ..ir.mlir import ir
from ..ir.placements import DISPATCHED, REPLICATE, Shard, parse_shard
from ..ir.types import dtype_of, placement_of, shape_of, with_placement
from ..plans.program import DTYPE_BYTES
from ..targets.collective import collective_seconds, exchange_seconds
from .placing.costs import Prices


def exchange_rows(module: ir.Module, prices: Prices | None) -> ir.Module:
    """Replace gathers and scatters of rows around mixtures by exchanges, in place: where the prices say so, None: wherever it can
    be."""
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.moe_experts":
            continue
        found = _around(operation)
        if found is not None and (prices is None or _pays(operation, found[0], prices)):
            _replace(operation, *found)
    return module


def _around(mixture: ir.Operation) -> tuple[ir.Operation, ir.Operation] | None:
    """The gather of rows that the mixture alone reads, and the scatter that alone reads its sum, along its experts' axis."""
    gather = modules.maker_of(mixture.operands[0])
    after = modules.readers_of(mixture.results[0])
    if gather is None or gather.name != "ts.all_gather" or len(after) != 1 or after[0][0].name != "ts.reduce_scatter":
        return None
    scatter = after[0][0]
    axes = [axis for axis, place in placement_of(mixture.operands[4]).items() if parse_shard(place) == Shard(0)]
    about = [(modules.text_attribute(item, "axis"), modules.int_attribute(item, "dimension")) for item in (gather, scatter)]
    if len(axes) != 1 or about != [(axes[0], 0)] * 2 or len(modules.readers_of(gather.results[0])) != 1:
        return None
    return (gather, scatter) if placement_of(mixture.operands[1])[axes[0]] == REPLICATE else None


def _pays(mixture: ir.Operation, gather: ir.Operation, prices: Prices) -> bool:
    ranks, (x, indices) = modules.int_attribute(gather, "ranks"), mixture.operands[:2]
    width, top_k = (shape_of(x)[1] or 0) * DTYPE_BYTES[dtype_of(x)], shape_of(indices)[1] or 1
    gain = 0.0
    for load in prices.workloads:
        size = float(load.rows * ranks * width)
        exchanged = exchange_seconds(size, top_k, ranks, prices.machine)
        if exchanged is None:
            return False
        gathered = sum(collective_seconds(name, size, ranks, prices.machine) for name in ("all_gather", "reduce_scatter"))
        gain += load.share * (gathered - 2 * exchanged)
    return gain > 0


def _replace(mixture: ir.Operation, gather: ir.Operation, scatter: ir.Operation) -> None:
    axis, indices = modules.text_attribute(gather, "axis"), mixture.operands[1]
    told = axis, 0, modules.int_attribute(gather, "ranks"), all_experts(mixture)
    attributes = (modules.text(told[0]), *map(modules.integer, told[1:]))
    with ir.InsertionPoint(mixture):
        kind = gather.results[0].type
        sent = dialect.Dispatch(kind, gather.operands[0], indices, *attributes)
    with_placement(sent.res, placement_of(sent.res) | {axis: DISPATCHED})
    with ir.InsertionPoint(scatter):
        back = dialect.Combine(scatter.results[0].type, mixture.results[0], indices, *attributes)
    for old, new in ((gather, sent.operation), (scatter, back.operation)):
        modules.set_label(new, modules.label_of(old))
        old.results[0].replace_all_uses_with(new.results[0])
        old.erase()
