"""Rules of activations, plain and gated, and of soft caps."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import shape_of
from .form import Form
from .pattern import AtenOp, Bind, Number, either, match, op
from .raised import Raised, Raiser, Rule, rows_of

_X = Bind("x")
_RELU = op("relu", _X)
_GELU_BY_HAND = op(
    "mul",
    op("mul", _X, 0.5),
    op("add", op("tanh", op("mul", op("add", _X, op("mul", op("pow", _X, 3.0), 0.044715)), sqrt(2 / pi))), 1.0),
)
_ACTIVATIONS: dict[str, Any] = {
    "silu": op("silu", _X),
    "gelu_tanh": either(op("gelu", _X, approximate="tanh"), _GELU_BY_HAND),
    "gelu": op("gelu", _X),
    "relu2": either(op("pow", _RELU, 2), op("square", _RELU), op("mul", _RELU, _RELU)),
    "relu": _RELU,
}


def _kind(value: ir.Value, raiser: Raiser) -> tuple[str, ir.Value] | None:
    """(activation, raised x) when the value is an activation of rows."""
    for name, pattern in _ACTIVATIONS.items():
        bound = match(pattern, value)
        x = rows_of(raiser, bound["x"]) if bound is not None else None
        if x is not None:
            return name, x
    return None


def _form(root: AtenOp) -> Form:
    shape = shape_of(root.result)
    return Form.at(shape, len(shape) - 2)


def _activation(root: AtenOp, raiser: Raiser) -> Raised | None:
    found = _kind(root.result, raiser)
    if found is None:
        return None
    name, x = found
    return Raised(dialect.Activation(x.type, x, modules.text(name)).res, _form(root))


def _gated_activation(root: AtenOp, raiser: Raiser) -> Raised | None:
    bound = match(op("mul", _X, Bind("up")), root.result) if root.target == "aten.mul.Tensor" else None
    if bound is None:
        return None
    for activated, other in ((bound["x"], bound["up"]), (bound["up"], bound["x"])):
        found, up = _kind(activated, raiser) if isinstance(activated, ir.Value) else None, rows_of(raiser, other)
        if found is not None and up is not None and shape_of(found[1]) == shape_of(up):
            name, gate = found
            return Raised(dialect.GatedActivation(gate.type, gate, up, modules.text(name)).res, _form(root))
    return None


_SOFTCAP = op("mul", op("tanh", op("div", _X, Number("cap"))), Number("cap"))


def _softcap(root: AtenOp, raiser: Raiser) -> Raised | None:
    bound = match(_SOFTCAP, root.result) if root.target == "aten.mul.Tensor" else None
    x = raiser.raised(bound["x"]) if bound is not None else None
    if bound is None or x is None or not bound["cap"] > 0:
        return None
    return Raised(dialect.Softcap(x.value.type, x.value, modules.number(bound["cap"])).res, x.form)


ACTIVATION_RULES: tuple[Rule, ...] = (_gated_activation, _activation, _softcap)
