"""The rule of a tensor that is written piece by piece: two pieces put into an empty one are the pieces joined."""

from __future__ import annotations

import json

from ...ir import module as modules
from ...ir.types import dtype_of, shape_of, tensor
from .fallback import built_call
from .form import Form
from .pattern import AtenOp, Bind, Number, match, op
from .raised import Raised, Raiser, Rule

_END = Number("end")
_EMPTY = op("new_empty", Bind("like"), Bind("sizes"))
_LEADING = op("copy", op("slice", _EMPTY, 3, 0, Number("cut")), Bind("first"))
_HALF_WRITTEN = op("slice_scatter", _EMPTY, _LEADING, 3, 0, Number("cut"))
_WRITTEN = op(
    "slice_scatter",
    _HALF_WRITTEN,
    op("copy", op("slice", _HALF_WRITTEN, 3, Number("cut"), _END), Bind("second")),
    3,
    Number("cut"),
    _END,
)


def _joined(root: AtenOp, raiser: Raiser) -> Raised | None:
    """Keys of multi-head latent attention where no rule takes the attention itself."""
    bound = match(_WRITTEN, root.result) if root.target == "aten.slice_scatter.default" else None
    if bound is None:
        return None
    first, second = raiser.raised(bound["first"]), raiser.raised(bound["second"])
    shape = shape_of(root.result)
    if first is None or second is None or first.form is not Form.HEADS_FIRST or second.form is not Form.HEADS_FIRST:
        return None
    if shape_of(first.value)[2] != bound["cut"] or shape_of(first.value)[1] != shape_of(second.value)[1]:
        return None
    width = bound["cut"] + (shape_of(second.value)[2] or 0)
    if width != shape[3] or not dtype_of(first.value) == dtype_of(second.value) == dtype_of(root.result):
        return None
    kind = tensor(dtype_of(root.result), [None, shape[1], width])
    text = json.dumps({"args": [[{"operand": 0}, {"operand": 1}], -1], "kwargs": {}})
    operands = [(first.value, first.form), (second.value, second.form)]
    reason = "keys are put together piece by piece"
    made = built_call(kind, operands, Form.HEADS_FIRST, "aten.cat.default", text, reason, modules.label_of(root.operation))
    return Raised(made, Form.HEADS_FIRST)


WRITTEN_RULES: tuple[Rule, ...] = (_joined,)
