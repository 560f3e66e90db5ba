"""The body of a recurrence on rows: one row of each of several sequences stands where a sequence's tokens stand elsewhere."""

from __future__ import annotations

import json

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.recurrence import step_block
from ...ir.types import dtype_of, shape_of, tensor
from ..rowwise.call import MixesTokens
from .fallback import fall_back
from .form import Form
from .pattern import AtenOp
from .raised import Raised, Raiser


def raise_recurrence(source: ir.Operation, raiser: Raiser) -> Raised:
    """The recurrence with a body of `ts.aten` operations that have layouts. Raises MixesTokens if rows are not kept apart."""
    rows = modules.int_attribute(source, "rows")
    operands = [_operand(value, raiser, at < rows) for at, value in enumerate(source.operands)]
    built = dialect.recurrence(source.results[0].type, operands, rows, modules.text_attribute(source, "layer"))
    modules.set_label(built, modules.label_of(source))
    before = step_block(source)
    after = ir.Block.create_at_start(built.regions[0], [argument.type for argument in before.arguments])
    with ir.InsertionPoint(after):
        _Body(before, after, rows, len(operands)).run(before)
    _erase_unused(after)
    return Raised(built.results[0], Form.at(shape_of(built.results[0]), 0))


def _operand(value: ir.Value, raiser: Raiser, of_rows: bool) -> ir.Value:
    found = raiser.raised(value)
    if found is None or (found.form.axis is not None) != of_rows or shape_of(found.value) != shape_of(value):
        raise MixesTokens("a value that enters a recurrence does not work row by row")
    return found.value


class _Body:
    """What `fall_back` asks of a driver, inside the body."""

    def __init__(self, before: ir.Block, after: ir.Block, rows: int, operands: int) -> None:
        self._done: dict[ir.Value, Raised] = {}
        self._first = after.arguments[0]
        self._numbers: ir.Value | None = None
        for at, (old, new) in enumerate(zip(before.arguments, after.arguments, strict=True)):
            of_rows = at < rows or at >= operands
            self._done[old] = Raised(new, Form.at(shape_of(new), 0) if of_rows else Form.WEIGHT)

    def run(self, block: ir.Block) -> None:
        for view in block.operations:
            operation = view.operation
            if operation.name == "ts.step":
                out, *states = (self._first_dimension(value) for value in operation.operands)
                dialect.step(out, states)
                return
            root = AtenOp(operation)
            if root.target.startswith("aten.arange") and "symbol" in modules.text_attribute(operation, "arguments"):
                raise MixesTokens(f"{root.target} numbers the rows of a step")
            self._done[root.result] = fall_back(root, self, self._row_values())

    def raised(self, value: ir.Value) -> Raised | None:
        return self._done.get(value)

    def weight(self, value: ir.Value) -> ir.Value | None:
        found = self._done.get(value)
        return found.value if found is not None and found.form is Form.WEIGHT else None

    constant = weight

    def _first_dimension(self, value: ir.Value) -> ir.Value:
        found = self._done[value]
        if found.form.axis is None or shape_of(found.value) != shape_of(value):
            raise MixesTokens("what a recurrence hands on does not have its rows first")
        return found.value

    def _row_values(self) -> ir.Value:
        """One value [rows], which says how many rows there are and nothing else; unused in most bodies."""
        if self._numbers is None:
            value = self._first
            while len(shape_of(value)) > 1:
                shape = (None, *shape_of(value)[2:])
                arguments = json.dumps({"args": [{"operand": 0}, 1, 0], "kwargs": {}})
                kind = tensor(dtype_of(value), shape)
                picked = dialect.aten(kind, [value], "aten.select.int", arguments)
                picked.attributes["layouts"] = modules.text(f"t{'.' * len(shape)}->t{'.' * (len(shape) - 1)}")
                picked.attributes["reason"] = modules.text("it says how many rows there are")
                value = picked.results[0]
            self._numbers = value
        return self._numbers


def _erase_unused(block: ir.Block) -> None:
    for view in reversed(list(block.operations)):
        if view.operation.name != "ts.step" and not any(list(result.uses) for result in view.operation.results):
            view.operation.erase()
