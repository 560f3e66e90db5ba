"""The module as each rank runs it: local shapes, placements in the types, collectives where placements change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...ir import dialect, rank_operations
from ...ir import module as modules
from ...ir.mixture import all_experts
from ...ir.mlir import ir
from ...ir.placements import DISPATCHED, OWN, PARTIAL, REPLICATE, Shard, at_rest, local_shape, parse_shard, part_of, with_axis
from ...ir.types import Placement, dtype_of, placement_of, shape_of, tensor
from .search import ENDS
from .strategies import Strategy, is_weight


def apply(module: ir.Module, axis: str, ranks: int, chosen: Mapping[ir.Operation, Strategy]) -> ir.Module:
    """Give every value its placement on one more axis and a rank's own shape, in place."""
    block = modules.step_block(module)
    returned = list(block.operations)[-1].operation.operands
    _Application(axis, ranks, chosen).block(block, [at_rest(shape_of(value), axis) for value in returned])
    modules.retype(block)
    modules.verify(module)
    return module


@dataclass
class _Application:
    axis: str
    ranks: int
    chosen: Mapping[ir.Operation, Strategy]
    whole: dict[ir.Value, tuple[int | None, ...]] = field(default_factory=dict)
    """Shapes before this axis."""
    before: dict[ir.Value, Placement] = field(default_factory=dict)
    """Placements on the axes before."""
    changed: dict[tuple[ir.Value, str], ir.Value] = field(default_factory=dict)
    placed: set[ir.Value] = field(default_factory=set)
    """Weights."""
    travelling: dict[ir.Value, ir.Operation] = field(default_factory=dict)
    """What mixtures make of rows that were sent to them, and that are to be sent back."""

    def block(self, block: ir.Block, ending: Sequence[str]) -> None:
        """`ending`: how what the block ends with lies."""
        for view in list(block.operations):
            operation = view.operation
            if operation.name == "ts.weight":
                if not modules.readers_of(operation.results[0]):
                    self._place(operation.results[0], REPLICATE)
            elif operation.name == "ts.repeat":
                self._repeat(operation)
            elif operation.name in ENDS:
                self._operands(operation, ending)
            elif operation in self.chosen:
                self._operation(operation, self.chosen[operation])
            else:
                self._place(operation.results[0], at_rest(shape_of(operation.results[0]), self.axis))

    def _repeat(self, operation: ir.Operation) -> None:
        strategy = self.chosen[operation]
        self._operands(operation, strategy.operands)
        body = modules.body_of(operation)
        for group in (body.arguments, operation.results):
            for value, placement in zip(group, strategy.results, strict=True):
                self._place(value, placement)
        self.block(body, strategy.operands)

    def _operation(self, operation: ir.Operation, strategy: Strategy) -> None:
        cut = parse_shard(strategy.operands[0]) if operation.name == "ts.slice" else None
        if cut is not None and cut.segments:
            _move_window(operation, cut, self.ranks)
        if strategy.operands[:1] == (DISPATCHED,):
            self._dispatched(operation, strategy)
            return
        self._operands(operation, strategy.operands)
        for result, placement in zip(operation.results, strategy.results, strict=True):
            self._place(result, placement)

    def _dispatched(self, operation: ir.Operation, strategy: Strategy) -> None:
        """A mixture whose rows travel: they are sent as the indices say, in the order of ranks."""
        own = part_of(self.axis, 0)
        self._operands(operation, (own, *strategy.operands[1:]))
        x, indices = operation.operands[:2]
        kind = tensor(dtype_of(x), shape_of(x), {**placement_of(x), self.axis: DISPATCHED})
        with ir.InsertionPoint(operation):
            sent = rank_operations.Dispatch(kind, x, indices, *self._exchange(operation))
        modules.set_label(sent.operation, modules.label_of(operation))
        operation.operands[0] = sent.res
        self._place(operation.results[0], PARTIAL)
        self.travelling[operation.results[0]] = operation

    def _exchange(self, mixture: ir.Operation) -> tuple[ir.Attribute, ...]:
        return modules.text(self.axis), *map(modules.integer, (0, self.ranks, all_experts(mixture)))

    def _operands(self, operation: ir.Operation, wanted: Sequence[str]) -> None:
        for position, (value, placement) in enumerate(zip(operation.operands, wanted, strict=True)):
            operation.operands[position] = self._weight(value, placement) if is_weight(value) else self._as(value, placement)

    def _place(self, value: ir.Value, placement: str) -> None:
        self.whole[value] = shape_of(value)
        self.before[value] = placement_of(value)
        shape = local_shape(shape_of(value), placement, self.ranks)
        value.set_type(tensor(dtype_of(value), shape, with_axis(self.before[value], self.axis, placement)))

    def _weight(self, value: ir.Value, placement: str) -> ir.Value:
        """A weight in the placement its reader wants; readers that want it otherwise get one of their own."""
        if value not in self.placed:
            self.placed.add(value)
            self._place(value, placement)
            self.changed[value, placement] = value
        if (value, placement) not in self.changed:
            maker = modules.made_by(value)
            with ir.InsertionPoint(maker):
                other = maker.clone()
            others = sum(1 for known, _ in self.changed if known == value)
            other.attributes["sym"] = modules.text(f"{modules.text_attribute(maker, 'sym')}.{self.axis}{others}")
            result = other.results[0]
            result.set_type(tensor(dtype_of(value), self.whole[value], self.before[value]))
            self._place(result, placement)
            self.changed[value, placement] = result
        return self.changed[value, placement]

    def _as(self, value: ir.Value, placement: str) -> ir.Value:
        """The value in another placement: a collective behind what makes it, once for all that want it so."""
        before = placement_of(value)[self.axis]
        if before == placement:
            return value
        if placement != REPLICATE and before not in {REPLICATE, PARTIAL}:
            return self._as(self._as(value, REPLICATE), placement)
        if (value, placement) not in self.changed:
            maker = modules.maker_of(value)
            with _behind(value):
                made = self._collective(value, before, placement)
            for operation in _makers_between(made, value):
                modules.set_label(operation, modules.label_of(maker) if maker is not None else "")
            self.changed[value, placement] = made
        return self.changed[value, placement]

    def _collective(self, value: ir.Value, before: str, after: str) -> ir.Value:
        axis, ranks = modules.text(self.axis), modules.integer(self.ranks)
        placements = {**placement_of(value), self.axis: after}
        cut = parse_shard(before)
        if value in self.travelling:
            mixture, kind = self.travelling[value], tensor(dtype_of(value), shape_of(value), placements)
            return rank_operations.Combine(kind, value, mixture.operands[1], *self._exchange(mixture)).res
        if after == part_of(self.axis, 0):
            kind = tensor(dtype_of(value), shape_of(value), placements)
            rows = modules.integer(0)
            if before == PARTIAL:
                return rank_operations.ReduceScatter(kind, value, axis, rows, ranks).res
            assert before == REPLICATE, f"no collective from {before} to {after}"
            return rank_operations.TakePart(kind, value, axis, rows, ranks).res
        if before == OWN:
            kind = tensor(dtype_of(value), shape_of(value), placements)
            return rank_operations.AllGather(kind, value, axis, modules.integer(0), ranks).res
        assert after == REPLICATE and (before == PARTIAL or isinstance(cut, Shard)), f"no collective from {before} to {after}"
        if cut is None:
            return rank_operations.AllReduce(tensor(dtype_of(value), shape_of(value), placements), value, axis, ranks).res
        shape = list(shape_of(value))
        true_size = self.whole[value][cut.dimension]
        own = shape[cut.dimension]
        shape[cut.dimension] = None if own is None else own * self.ranks
        dimension = modules.integer(cut.dimension)
        gathered = rank_operations.AllGather(tensor(dtype_of(value), shape, placements), value, axis, dimension, ranks).res
        if shape[cut.dimension] == true_size:
            return gathered
        # what filled up the last parts goes
        kind = tensor(dtype_of(value), self.whole[value], placements)
        return dialect.Slice(kind, gathered, modules.integer(0)).res


def _makers_between(made: ir.Value, value: ir.Value) -> list[ir.Operation]:
    """What makes one value of another, a chain of operations of one operand."""
    found: list[ir.Operation] = []
    while made != value:
        maker = modules.made_by(made)
        found.append(maker)
        made = maker.operands[0]
    return found


def _move_window(operation: ir.Operation, cut: Shard, ranks: int) -> None:
    """Where a window begins in a rank's own columns."""
    start, before, own = modules.int_attribute(operation, "start"), 0, 0
    for segment in cut.segments:
        if before >= start:
            break
        before += segment.size * ranks // segment.copies
        own += segment.size
    operation.attributes["start"] = modules.integer(own)


def _behind(value: ir.Value) -> ir.InsertionPoint:
    """Behind what makes a value: at the beginning of a body, of what it is given."""
    operation = modules.maker_of(value)
    if operation is None:
        return ir.InsertionPoint.at_block_begin(ir.BlockArgument(value).owner)
    block = operation.block
    following = list(block.operations)
    at = next(number for number, view in enumerate(following) if view.operation == operation)
    return ir.InsertionPoint(following[at + 1].operation)
