"""Seconds that an operation takes in a strategy, and that a change of placement takes, over the expected steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.placements import DISPATCHED, GROUPS, OWN, PARTIAL, REPLICATE, Shard, local_shape, parse_shard, part_of
from ...ir.sharding import CHANGES
from ...ir.types import dtype_of, placement_of, shape_of
from ...plans.program import DTYPE_BYTES
from ...targets.collective import Collective, collective_seconds, exchange_seconds, seconds_of
from ...targets.cost import Cost, cost_of, cost_of_experts
from ...targets.machine import Machine
from ...targets.roofline import roofline
from ..select import Workload
from .cuts import is_padded
from .strategies import Strategy, is_weight

ATTENTION = {"ts.attention", "ts.latent_attention"}

_ROWS = str(Shard(0))

_CHANGES: dict[tuple[str, str], Collective] = {
    (PARTIAL, REPLICATE): "all_reduce",
    ("shard", REPLICATE): "all_gather",
    (PARTIAL, _ROWS): "reduce_scatter",
    (OWN, REPLICATE): "all_gather",
    (PARTIAL, OWN): "reduce_scatter",
}
"""And each rank may take its own rows of what all have."""


@dataclass(frozen=True)
class Prices:
    """What strategies are judged by: a machine, the expected steps, a sequence's tokens of context, bytes of memory of a rank
    (None: no limit), `ranks` on the axis `axis`, and how many `further` parts the axes behind it may make of each."""

    machine: Machine
    workloads: Sequence[Workload]
    context: float
    memory: int | None = None
    axis: str = ""
    ranks: int = 1
    further: int = 1

    @property
    def room(self) -> int | None:
        """Bytes of weights that a rank may have on this axis: the axes behind it make them fewer."""
        return None if self.memory is None else self.memory * self.further

    def of_operation(self, operation: ir.Operation, strategy: Strategy, after_gather: bool) -> float:
        """Expected seconds of one run of the operation."""
        return sum(load.share * self._seconds(operation, strategy, load, after_gather) for load in self.workloads)

    def of_change(self, value: ir.Value, before: str, after: str, after_gather: bool) -> float | None:
        """Expected seconds of bringing a value from one placement to another; None where that is not done."""
        if DISPATCHED in {before, after}:
            return self._of_exchange(value, before, after, after_gather)
        cut = parse_shard(before)
        if cut is not None and (cut.copies > 1 or cut.segments or self._leaves_a_gap(value, cut)):
            return None
        if cut is not None and after == _ROWS:
            ways = self.of_change(value, before, REPLICATE, after_gather), self.of_change(value, REPLICATE, after, after_gather)
            return None if None in ways else sum(filter(None, ways))
        collective = _CHANGES.get(("shard" if cut is not None else before, after))
        taken = before == REPLICATE and after in {_ROWS, OWN}
        if collective is None and not taken:
            return None
        if after == _ROWS and (after_gather or shape_of(value)[0] is not None):
            return None
        total = 0.0
        for load in self.workloads:
            size = _bytes(shape_of(value), value, (load.logit_rows if after_gather else load.rows) * self._groups)
            if collective is None:
                seconds = 2 * size / self.ranks / self.machine.rates["bandwidth"].value
            else:
                seconds = collective_seconds(collective, size, self.ranks, self.machine)
            total += load.share * seconds
        return total

    def _of_exchange(self, value: ir.Value, before: str, after: str, after_gather: bool) -> float | None:
        """Of sending rows, of which each rank has some, to their experts, or back from there."""
        around = [modules.maker_of(value)] if before == DISPATCHED else [user for user, _ in modules.readers_of(value)]
        mixture = next((item for item in around if item is not None and item.name == "ts.moe_experts"), None)
        if mixture is None or {before, after} - {DISPATCHED} != {part_of(self.axis, 0)}:
            return None
        top_k, total = shape_of(mixture.operands[1])[1] or 1, 0.0
        for load in self.workloads:
            size = _bytes(shape_of(value), value, (load.logit_rows if after_gather else load.rows) * self._groups)
            seconds = exchange_seconds(size, top_k, self.ranks, self.machine)
            if seconds is None:
                return None
            total += load.share * seconds
        return total

    @property
    def _groups(self) -> int:
        """How many ranks' rows there are in a value that all have."""
        return self.ranks if self.axis == GROUPS else 1

    def _leaves_a_gap(self, value: ir.Value, cut: Shard) -> bool:
        """Whether zeros that fill up the last part would stay between the parts of another axis."""
        padded = is_padded(cut, shape_of(value)[cut.dimension] or 0, self.ranks)
        others = (parse_shard(placement) for placement in placement_of(value).values())
        return padded and any(other is not None and other.dimension == cut.dimension for other in others)

    def of_memory(self, step_seconds: float, size: float) -> float:
        """Seconds that bytes of weights are worth: they are missed by sequences that could run at the same time."""
        return step_seconds * size / self.room if self.room else 0.0

    def _seconds(self, operation: ir.Operation, strategy: Strategy, load: Workload, after_gather: bool) -> float:
        rows = load.logit_rows if after_gather else load.rows
        if operation.name in CHANGES:  # along an axis before this one
            parts = _share(list(zip(operation.results, strategy.results, strict=True)), rows, self.ranks)
            return seconds_of(operation, rows, self.machine, parts)
        if OWN not in strategy.operands:
            rows *= self._groups
        cost = local_cost(operation, strategy, rows, self.ranks)
        if operation.name in ATTENTION:
            cost = _with_context(cost, operation, strategy, load, self.ranks, self.context)
        dtypes = map(dtype_of, operation.results)
        return roofline(cost, self.machine, dtypes, native=True).limit


def local_cost(operation: ir.Operation, strategy: Strategy, rows: int, ranks: int) -> Cost:
    """A rank's share of an operation's work, the busiest one's where experts are shared out."""
    if operation.name == "ts.moe_experts" and strategy.cut == "e":
        return cost_of_experts(operation, rows, ranks)
    cost = cost_of(operation, rows)
    values = list(zip((*operation.operands, *operation.results), (*strategy.operands, *strategy.results), strict=True))
    weights = _share([(value, placement) for value, placement in values if is_weight(value)], rows, ranks)
    activations = _share([(value, placement) for value, placement in values if not is_weight(value)], rows, ranks)
    flops = cost.flops / ranks if strategy.cut else cost.flops
    return Cost(flops, cost.weight_bytes * weights, cost.activation_bytes * activations)


def weight_bytes(value: ir.Value, placement: str, ranks: int) -> int:
    """Bytes of a rank's part of a weight, in the model's type."""
    return _bytes(local_shape(shape_of(value), placement, ranks), value, 1)


def _share(values: Sequence[tuple[ir.Value, str]], rows: int, ranks: int) -> float:
    whole = sum(_bytes(shape_of(value), value, rows) for value, _ in values)
    parts = sum(_local_bytes(value, placement, rows, ranks) for value, placement in values)
    return parts / whole if whole else 1.0


def _local_bytes(value: ir.Value, placement: str, rows: int, ranks: int) -> int:
    own = -(-rows // ranks) if placement == _ROWS else rows
    return _bytes(local_shape(shape_of(value), placement, ranks), value, own)


def _bytes(shape: Sequence[int | None], value: ir.Value, rows: int) -> int:
    return prod(rows if size is None else size for size in shape) * DTYPE_BYTES[dtype_of(value)]


def _with_context(cost: Cost, operation: ir.Operation, strategy: Strategy, load: Workload, ranks: int, context: float) -> Cost:
    """With what attention reads of the cache: once for each sequence."""
    if operation.name == "ts.latent_attention":
        cached = [(operation.operands[at], strategy.operands[at]) for at in (2, 3)]
    else:
        cached = [(operation.operands[at], strategy.operands[at]) for at in (1, 2)]
    of_token = sum(_bytes(local_shape(shape_of(value), placement, ranks), value, 1) for value, placement in cached)
    heads = prod(size or 1 for size in local_shape(shape_of(operation.results[0]), strategy.results[0], ranks))
    flops = 4.0 * heads * load.rows * context
    return Cost(cost.flops + flops, cost.weight_bytes, cost.activation_bytes + of_token * context * load.logit_rows)
