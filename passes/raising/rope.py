"""Rules of rotary position embedding: tables, and their use."""

from __future__ import annotations

from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp, Bind, Cast, Number, either, match, op
from .raised import Raised, Raiser, Rule, rows_of

_ANGLES = op(
    "transpose",
    op(
        "matmul",
        op("expand", op("unsqueeze", op("unsqueeze", Bind("frequencies"), 0), 2), [1, -1, 1]),
        Cast(op("unsqueeze", Bind("positions"), 1)),
    ),
    1,
    2,
)
_TWICE = op("cat", [_ANGLES, _ANGLES], -1)
_SCALED = {
    name: Cast(either(op("mul", op(name, _TWICE), Number("scaling")), op(name, _TWICE)), "dtype") for name in ("cos", "sin")
}


def rope_table(value: ir.Value, which: str, raiser: Raiser) -> tuple[ir.Value, ir.Value, float, str] | None:
    """(positions, frequencies, scaling, dtype) if the value is the cosine or sine table of a rotary embedding."""
    bound = match(_SCALED[which], value)
    if bound is None:
        return None
    positions, frequencies = raiser.raised(bound["positions"]), raiser.constant(bound["frequencies"])
    if positions is None or frequencies is None or positions.form is not Form.IDS:
        return None
    return positions.value, frequencies, float(bound.get("scaling", 1.0)), dtype_of(value)


def _rotary_table(root: AtenOp, raiser: Raiser) -> Raised | None:
    for index, which in enumerate(("cos", "sin")):
        found = rope_table(root.result, which, raiser)
        if found is None:
            continue
        positions, frequencies, scaling, dtype = found
        kind = tensor(dtype, [None, (shape_of(frequencies)[0] or 0) * 2])
        table = dialect.RopeTable(kind, kind, positions, frequencies, modules.number(scaling))
        return Raised(table.operation.results[index], Form.ROWS)
    return None


def _rope_pattern(head_axis: int) -> Any:
    x, cos, sin = Bind("x"), op("unsqueeze", Bind("cos"), head_axis), op("unsqueeze", Bind("sin"), head_axis)
    first, second = op("slice", x, 3, 0, Number("half")), op("slice", x, 3, Number("half"), Number("end"))
    return op("add", op("mul", x, cos), op("mul", op("cat", [op("neg", second), first], -1), sin))


_ROPE = {Form.HEADS_FIRST: _rope_pattern(1), Form.HEADS: _rope_pattern(2)}


def _rope(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.add.Tensor":
        return None
    for form, pattern in _ROPE.items():
        bound = match(pattern, root.result)
        if bound is None:
            continue
        x, cos, sin = raiser.raised(bound["x"]), rows_of(raiser, bound["cos"]), rows_of(raiser, bound["sin"])
        if x is None or cos is None or sin is None or x.form is not form:
            continue
        if shape_of(x.value)[2] != 2 * bound["half"] or shape_of(cos)[1] != 2 * bound["half"]:
            continue
        kind = tensor(dtype_of(x.value), shape_of(x.value))
        return Raised(dialect.Rope(kind, x.value, cos, sin, modules.flag(False)).res, form)
    return None


ROPE_RULES: tuple[Rule, ...] = (
    _rotary_table,
    _rope,
)
