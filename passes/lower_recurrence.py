"""The body of `ts.recurrence` as plans carry it."""

from __future__ import annotations

import json

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.recurrence import state_arguments, step_block
from ..ir.types import dtype_of, shape_of
from ..plans.aten_functions import function_of
from ..plans.recurrence_body import BodyCall, RecurrenceBody, Value


def body_of_recurrence(operation: ir.Operation) -> RecurrenceBody:
    block = step_block(operation)
    numbers: dict[ir.Value, int] = {argument: at for at, argument in enumerate(block.arguments)}
    calls: list[BodyCall] = []
    *inside, last = (view.operation for view in block.operations)
    for inner in inside:
        operands = tuple(numbers[value] for value in inner.operands)
        build = _reshape if inner.name == "ts.reshape" else _aten
        calls.append(build(inner, operands))
        numbers[inner.results[0]] = len(numbers)
    out, *new_states = (numbers[value] for value in last.operands)
    return RecurrenceBody(
        inputs=tuple(_value(value) for value in operation.operands),
        states=tuple(_value(value) for value in state_arguments(operation)),
        calls=tuple(calls),
        out=out,
        new_states=tuple(new_states),
    )


def _value(value: ir.Value) -> Value:
    shape = shape_of(value)
    of_rows = bool(shape) and shape[0] is None
    sizes = tuple(size or 0 for size in (shape[1:] if of_rows else shape))
    return Value(dtype_of(value), sizes, of_rows)  # pyright: ignore[reportArgumentType]


def _aten(inner: ir.Operation, operands: tuple[int, ...]) -> BodyCall:
    """An operation that raising kept, so that plans have a name for it."""
    function = function_of(modules.text_attribute(inner, "target"))
    assert function is not None
    arguments, layouts = modules.text_attribute(inner, "arguments"), modules.text_attribute(inner, "layouts")
    return BodyCall(function, operands, arguments, layouts, _value(inner.results[0]))


def _reshape(inner: ir.Operation, operands: tuple[int, ...]) -> BodyCall:
    sizes = [{"symbol": "tokens"}, *shape_of(inner.results[0])[1:]]
    before, after = ("t" + "." * (len(shape_of(value)) - 1) for value in (inner.operands[0], inner.results[0]))
    arguments = json.dumps({"args": [{"operand": 0}, sizes], "kwargs": {}}, sort_keys=True)
    return BodyCall("aten.reshape.default", operands, arguments, f"{before}->{after}", _value(inner.results[0]))
