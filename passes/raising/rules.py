"""One rule per `ts` operation: which ATen shapes of code are it, and what is built for them.

A rule gets the ATen operation at the root and the raiser; it returns the raised value, or None when it does not apply.
Hugging Face code works on [1, tokens, ...]; `ts` works on [rows, ...]. `Form` says how a raised value stood in ATen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ...ir import dialect
from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp, Bind, Cast, Number, defining, either, match, op


@dataclass(frozen=True)
class Raised:
    value: ir.Value
    form: Form


class Raiser(Protocol):
    """What rules may ask of the driver."""

    def raised(self, value: ir.Value) -> Raised | None: ...
    def weight(self, value: ir.Value) -> ir.Value | None: ...
    def constant(self, value: ir.Value) -> ir.Value | None: ...


Rule = Callable[[AtenOp, Raiser], Raised | None]


def _rows(raiser: Raiser, value: Any) -> ir.Value | None:
    found = raiser.raised(value) if isinstance(value, ir.Value) else None
    return found.value if found is not None and found.form is Form.ROWS else None


def _embedding(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.embedding.default":
        return None
    table, ids = raiser.weight(root.arguments[0]), raiser.raised(root.arguments[1])
    if table is None or ids is None or ids.form is not Form.IDS:
        return None
    kind = tensor(dtype_of(table), [None, shape_of(table)[1]])
    return Raised(dialect.Embedding(kind, ids.value, table).res, Form.ROWS)


def _linear(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.linear.default":
        return None
    x, weight = _rows(raiser, root.arguments[0]), raiser.weight(root.arguments[1])
    given_bias = root.arguments[2] if len(root.arguments) > 2 else None
    bias = raiser.weight(given_bias) if given_bias is not None else None
    if x is None or weight is None or (given_bias is not None and bias is None):
        return None
    kind = tensor(dtype_of(x), [None, shape_of(weight)[0]])
    return Raised(dialect.Linear(kind, x, weight, [bias] if bias is not None else []).res, Form.ROWS)


_X32 = Cast(Bind("x"), "up")
_NORMAL = op("mul", _X32, op("rsqrt", op("add", op("mean", op("pow", _X32, 2), [-1], True), Number("eps"))))
_RMS_NORM = op("mul", Bind("weight"), Cast(_NORMAL, "down"))
_RMS_NORM_CAST_LAST = Cast(op("mul", Bind("weight"), _NORMAL))


def _rms_norm(root: AtenOp, raiser: Raiser) -> Raised | None:
    for pattern, cast_before_weight in ((_RMS_NORM, True), (_RMS_NORM_CAST_LAST, False)):
        bound = match(pattern, root.result)
        if bound is None:
            continue
        x, weight = raiser.raised(bound["x"]), raiser.weight(bound["weight"])
        if x is None or weight is None or dtype_of(x.value) != dtype_of(root.result):
            continue
        kind = tensor(dtype_of(x.value), shape_of(x.value))
        flags = modules.number(bound["eps"]), modules.flag(cast_before_weight), modules.flag(False)
        return Raised(dialect.RmsNorm(kind, x.value, weight, *flags).res, x.form)
    return None


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
        x, cos, sin = raiser.raised(bound["x"]), _rows(raiser, bound["cos"]), _rows(raiser, bound["sin"])
        if x is None or cos is None or sin is None or x.form is not form:
            continue
        if shape_of(x.value)[2] != 2 * bound["half"] or shape_of(cos)[1] != 2 * bound["half"]:
            continue
        kind = tensor(dtype_of(x.value), shape_of(x.value))
        return Raised(dialect.Rope(kind, x.value, cos, sin, modules.flag(False)).res, form)
    return None


def _attention(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "tokenspeed.attention.default":
        return None
    heads, given_sinks = list(root.operation.operands)[:3], list(root.operation.operands)[3:]
    operands = [raiser.raised(value) for value in heads]
    values = [found.value for found in operands if found is not None and found.form is Form.HEADS_FIRST]
    sinks = [weight for weight in map(raiser.weight, given_sinks) if weight is not None]
    if len(values) != 3 or len(sinks) != len(given_sinks):
        return None
    scale, window, softcap, layer = root.arguments
    q, _k, v = values
    kind = tensor(dtype_of(q), [None, shape_of(q)[1], shape_of(v)[2]])
    scores = modules.number(scale), modules.integer(window), modules.number(softcap)
    return Raised(dialect.Attention(kind, *values, sinks, modules.text(layer), *scores).res, Form.HEADS)


_ACTIVATIONS: dict[str, Any] = {
    "silu": op("silu", Bind("gate")),
    "gelu_tanh": op("gelu", Bind("gate"), approximate="tanh"),
    "gelu": op("gelu", Bind("gate")),
}


def _gated_activation(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target != "aten.mul.Tensor":
        return None
    for name, activation in _ACTIVATIONS.items():
        bound = match(op("mul", activation, Bind("up")), root.result)
        if bound is None:
            continue
        gate, up = _rows(raiser, bound["gate"]), _rows(raiser, bound["up"])
        if gate is not None and up is not None and shape_of(gate) == shape_of(up):
            return Raised(dialect.GatedActivation(gate.type, gate, up, modules.text(name)).res, Form.ROWS)
    return None


def _elementwise(target: str, build: Any) -> Rule:
    def rule(root: AtenOp, raiser: Raiser) -> Raised | None:
        if root.target != target or len(root.operation.operands) != 2 or root.keywords:
            return None
        a, b = (raiser.raised(value) for value in root.operation.operands)
        if a is None or b is None or a.form is not b.form or a.value.type != b.value.type:
            return None
        return Raised(build(a.value.type, a.value, b.value).res, a.form)

    return rule


_TOKENS = {"symbol": "tokens"}


def _reshape(root: AtenOp, raiser: Raiser) -> Raised | None:
    """view or reshape between [1, tokens, heads * d] and [1, tokens, heads, d]."""
    if root.target not in {"aten.view.default", "aten.reshape.default"} or root.arguments[1][:2] != [1, _TOKENS]:
        return None
    x = raiser.raised(root.arguments[0])
    after = shape_of(root.result)
    if x is None or x.form not in {Form.ROWS, Form.HEADS} or len(after) not in {3, 4}:
        return None
    kind = tensor(dtype_of(x.value), [None, *after[2:]])
    return Raised(dialect.Reshape(kind, x.value).res, Form.ROWS if len(after) == 3 else Form.HEADS)


def _transpose(root: AtenOp, raiser: Raiser) -> Raised | None:
    """Swapping tokens and heads changes nothing in `ts`: rows stay first."""
    if root.target != "aten.transpose.int" or root.arguments[1:] not in ([1, 2], [2, 1]):
        return None
    x = raiser.raised(root.arguments[0])
    swapped = {Form.HEADS: Form.HEADS_FIRST, Form.HEADS_FIRST: Form.HEADS}
    return Raised(x.value, swapped[x.form]) if x is not None and x.form in swapped else None


RULES: tuple[Rule, ...] = (
    _embedding,
    _linear,
    _rms_norm,
    _rotary_table,
    _rope,
    _attention,
    _gated_activation,
    _reshape,
    _transpose,
    _elementwise("aten.add.Tensor", dialect.Add),
    _elementwise("aten.mul.Tensor", dialect.Mul),
)
"""Tried in this order at each ATen operation; the first that applies wins."""


def culprit(value: ir.Value, raiser: Raiser) -> AtenOp | None:
    """The first ATen operation on the way to `value` that no rule took, although everything it reads was raised."""
    found = defining(value)
    if found is None or raiser.raised(value) is not None:
        return None
    for operand in found.operation.operands:
        deeper = culprit(operand, raiser)
        if deeper is not None:
            return deeper
    return found
