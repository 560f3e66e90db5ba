"""overlap: layers done in two halves of a step's rows, so that one half's sums over ranks travel while the other computes.

What works row by row is done for each half by itself, up to and with each sum; attention, caches and mixtures take all rows at
once, so that no row is computed before those that it attends to are stored. Each half carries its own rows of the residual stream
from layer to layer. Every operation computes what it did, and all ranks run the same program.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..ir import dialect, rank_operations
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import shape_of
from .verify_spmd import verify_spmd

ROW_BY_ROW = {
    "ts.linear",
    "ts.rms_norm",
    "ts.add_rms_norm",
    "ts.layer_norm",
    "ts.gated_activation",
    "ts.activation",
    "ts.scale",
    "ts.softcap",
    "ts.cast",
    "ts.add",
    "ts.mul",
    "ts.all_reduce",
}
"""Operations that are done for each half by itself."""

_VIEWS = {"ts.slice", "ts.reshape"}
HALVES = (0, 1)


def halve_rows(module: ir.Module) -> ir.Module:
    """A module whose layers run in halves of the rows, but for those that sum nothing; the given one stays as it is."""
    made = modules.parse(str(module))
    for operation in list(modules.walk(modules.step_block(made))):
        if operation.name == "ts.repeat" and _may_be_halved(operation):
            _halve(operation)
    modules.verify(made)
    verify_spmd(made)
    return made


def _may_be_halved(repeat: ir.Operation) -> bool:
    names = [view.operation.name for view in modules.body_of(repeat).operations]
    return "ts.all_reduce" in names and all(None in shape_of(value) for value in repeat.operands)


def _halve(repeat: ir.Operation) -> None:
    with ir.InsertionPoint(repeat):
        entering = [_taken(value, half) for half in HALVES for value in repeat.operands]
        kinds = [value.type for value in entering]
        numbers = [repeat.attributes[name] for name in ("first", "count", "stride")]
        made = dialect.Repeat(kinds, entering, *numbers)
        body = made.operation.regions[0].blocks.append(*kinds)
    each = len(repeat.operands)
    old = modules.body_of(repeat)
    halves = {(value, half): body.arguments[half * each + at] for at, value in enumerate(old.arguments) for half in HALVES}
    with ir.InsertionPoint(body):
        _Body(halves).run(old)
    with ir.InsertionPoint(repeat):
        for at, result in enumerate(repeat.results):
            first, second = (made.operation.results[half * each + at] for half in HALVES)
            result.replace_all_uses_with(rank_operations.JoinRows(result.type, first, second).res)
    repeat.erase()


def _taken(value: ir.Value, half: int) -> ir.Value:
    return rank_operations.TakeRows(value.type, value, modules.integer(half)).res


@dataclass
class _Body:
    """A repeat's new body, made at the current insertion point. Values of the old one are known whole, in halves, or both."""

    halves: dict[tuple[ir.Value, int], ir.Value]
    wholes: dict[ir.Value, ir.Value] = field(default_factory=dict)
    waiting: list[ir.Operation] = field(default_factory=list)
    """Operations that are still to be done, first for the one half, then for the other."""

    def run(self, old: ir.Block) -> None:
        for view in old.operations:
            operation = view.operation
            if operation.name == "ts.yield":
                self._flush()
                carried = [self._half(value, half) for half in HALVES for value in operation.operands]
                dialect.Yield(carried)
            elif operation.name in _VIEWS and None in shape_of(operation.results[0]):
                continue  # made where they are read, of all rows or of a half
            elif operation.name in ROW_BY_ROW and None in shape_of(operation.results[0]):
                self.waiting.append(operation)
                if operation.name == "ts.all_reduce":
                    self._flush()
            else:
                if any(None in shape_of(result) for result in operation.results):
                    self._flush()
                self._all_rows(operation)

    def _flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for half in HALVES:
            for operation in waiting:
                operands = [self._operand(value, half) for value in operation.operands]
                made = operation.clone()
                for position, value in enumerate(operands):
                    made.operands[position] = value
                for result, own in zip(operation.results, made.results, strict=True):
                    self.halves[result, half] = own

    def _all_rows(self, operation: ir.Operation) -> None:
        operands = [self._whole(value) for value in operation.operands]
        made = operation.clone()
        for position, value in enumerate(operands):
            made.operands[position] = value
        self.wholes |= dict(zip(operation.results, made.results, strict=True))

    def _operand(self, value: ir.Value, half: int) -> ir.Value:
        return self._half(value, half) if None in shape_of(value) else self._whole(value)

    def _whole(self, value: ir.Value) -> ir.Value:
        """All rows of a value, or what has none; what was made outside of the body is itself."""
        if value not in self.wholes:
            maker = modules.maker_of(value)
            if maker is not None and _is_view_inside(maker):
                self.wholes[value] = _again(maker, self._whole(maker.operands[0]))
            elif (value, 0) in self.halves:
                self.wholes[value] = rank_operations.JoinRows(value.type, *(self.halves[value, half] for half in HALVES)).res
            else:
                self.wholes[value] = value
        return self.wholes[value]

    def _half(self, value: ir.Value, half: int) -> ir.Value:
        if (value, half) not in self.halves:
            maker = modules.maker_of(value)
            if maker is not None and _is_view_inside(maker) and value not in self.wholes:
                self.halves[value, half] = _again(maker, self._half(maker.operands[0], half))
            else:
                self.halves[value, half] = _taken(self._whole(value), half)
        return self.halves[value, half]


def _is_view_inside(operation: ir.Operation) -> bool:
    parent = operation.parent
    return operation.name in _VIEWS and parent is not None and parent.name == "ts.repeat"


def _again(operation: ir.Operation, source: ir.Value) -> ir.Value:
    made = operation.clone()
    made.operands[0] = source
    return made.results[0]
