"""What no rule raises: the same ATen operation on flat rows, if it works row by row (`passes/rowwise`).

The operation stays `ts.aten`; `layouts` says how each operand and the result stood in ATen. Operations that only move elements
in ways that flat rows do not see become a `ts.reshape`, or nothing.
"""

from __future__ import annotations

import json
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from ...plans.aten_functions import function_of
from ..rowwise.call import Call, MixesTokens, call_of
from ..rowwise.factories import counts_tokens
from ..rowwise.rules import result_axis
from .form import Form
from .pattern import AtenOp
from .raised import Raised, Raiser

KEEPS_ORDER = {"_unsafe_view", "reshape", "squeeze", "unsqueeze", "view"}
MOVES = KEEPS_ORDER | {"expand", "permute", "transpose"}
_NEARLY = {
    "aten.add.Tensor": "operands differ in shape or type",
    "aten.mul.Tensor": "operands differ in shape or type",
    "aten.linear.default": "its weight is computed, not stored",
    "aten.embedding.default": "its table or its indices are computed",
}


def fall_back(root: AtenOp, raiser: Raiser, positions: ir.Value) -> Raised:
    """The operation on flat rows; every operand must have been raised. `positions` are the step's positions, i32 [rows].

    Raises MixesTokens if the operation does not work row by row, or is not one that a plan may call.
    """
    if "other_sizes" in root.operation.attributes:
        sizes = modules.text_attribute(root.operation, "other_sizes")
        raise MixesTokens(f"{root.target} gives a dimension of {sizes} elements, which is not the number of tokens")
    call = call_of(root, lambda value: _found(raiser, value).form.axis)
    if counts_tokens(call):
        # in a sequence's own forward pass a token's number is its position
        form = Form.at(call.result, 0)
        return Raised(_cast(positions, Form.of("t"), dtype_of(root.result), root), form)
    axis = result_axis(call)
    form = Form.STATIC if axis is None else Form.at(call.result, axis)
    operands = [_operand(raiser, value, root) for value in root.operation.operands]
    if call.name in MOVES and axis is not None and operands and _same_order(call, operands[0][1], form):
        return Raised(_reshaped(operands[0][0], form.rows_shape(call.result)), form)
    return Raised(_call(root, operands, form, positions), form)


def _found(raiser: Raiser, value: ir.Value) -> Raised:
    found = raiser.raised(value)
    assert found is not None
    return found


def _operand(raiser: Raiser, value: ir.Value, root: AtenOp) -> tuple[ir.Value, Form]:
    """The raised value, as ATen had it but for its layout."""
    found = _found(raiser, value)
    expected = found.form.rows_shape(shape_of(value))
    if shape_of(found.value) != expected:
        raise MixesTokens(f"{root.target} reads {shape_of(found.value)}, which stands for {expected}")
    return _cast(found.value, found.form, dtype_of(value), root), found.form


def _cast(value: ir.Value, form: Form, dtype: str, root: AtenOp) -> ir.Value:
    if dtype_of(value) == dtype:
        return value
    arguments = json.dumps({"args": [{"operand": 0}], "kwargs": {"dtype": {"dtype": dtype}}})
    kind = tensor(dtype, shape_of(value))
    reason = f"ATen computes in {dtype} here"
    return built_call(kind, [(value, form)], form, "aten._to_copy.default", arguments, reason, modules.label_of(root.operation))


def _same_order(call: Call, before: Form, after: Form) -> bool:
    """Whether the features of each row stay in their order."""
    x = call.operand("self")
    if call.name in KEEPS_ORDER:
        return True
    if call.name == "expand":
        return before.axis is not None and tuple(call.result)[-x.rank :] == x.shape and set(call.result[: -x.rank]) <= {1}
    order = list(range(x.rank))
    if call.name == "permute":
        order = [item % x.rank for item in call.arguments["dims"]]
    else:
        one, other = call.dimension("dim0", x.rank), call.dimension("dim1", x.rank)
        order[one], order[other] = order[other], order[one]
    features = [place for place in order if place != x.axis and x.shape[place] != 1]
    return features == sorted(features) and after.axis is not None


def _reshaped(value: ir.Value, shape: tuple[int | None, ...]) -> ir.Value:
    return value if shape_of(value) == shape else dialect.Reshape(tensor(dtype_of(value), shape), value).res


def _call(root: AtenOp, operands: list[tuple[ir.Value, Form]], form: Form, positions: ir.Value) -> ir.Value:
    if function_of(root.target) is None:
        raise MixesTokens(f"{root.target} is not among the functions that a plan may call")
    text = modules.text_attribute(root.operation, "arguments")
    if any(item != "tokens" for item in _symbols(json.loads(text))):
        raise MixesTokens(f"{root.target} computes with the number of tokens")
    if not any(operand.axis is not None for _, operand in operands):
        operands = [*operands, (positions, Form.of("t"))]  # not read: it says how many rows there are
    kind = tensor(dtype_of(root.result), form.rows_shape(shape_of(root.result)))
    reason = _NEARLY.get(root.target, f"no rule raises {root.target}")
    return built_call(kind, operands, form, root.target, text, reason, modules.label_of(root.operation))


def built_call(
    kind: ir.Type, operands: list[tuple[ir.Value, Form]], form: Form, target: str, arguments: str, reason: str, label: str
) -> ir.Value:
    """A `ts.aten` of raised operands and their forms; `reason` says why it is one."""
    built = dialect.aten(kind, [value for value, _ in operands], target, arguments)
    layouts = ",".join(operand.layout for _, operand in operands)
    built.attributes["layouts"] = modules.text(f"{layouts}->{form.layout}")
    built.attributes["reason"] = modules.text(reason)
    modules.set_label(built, label)
    return built.results[0]


def _symbols(item: Any) -> list[str]:
    if isinstance(item, dict):
        return [item["symbol"]] if "symbol" in item else [found for part in item.values() for found in _symbols(part)]
    if isinstance(item, list):
        return [found for part in item for found in _symbols(part)]
    return []
