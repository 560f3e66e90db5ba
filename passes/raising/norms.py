"""Rules of norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.types import dtype_of, shape_of, tensor
from .pattern import AtenOp, Bind, Cast, Number, match, op
from .raised import Raised, Raiser, Rule

_X32 = Cast(Bind("x"))
_WEIGHT = Cast(Bind("weight"))


def _normal(x: Any) -> Any:
    """x / sqrt(mean(x^2) + eps)."""
    return op("mul", x, op("rsqrt", op("add", op("mean", op("pow", x, 2), [-1], True), Number("eps"))))


@dataclass(frozen=True)
class _RmsNorm:
    pattern: Any
    cast_before_weight: bool
    one_plus_weight: bool


_RMS_NORMS = (
    _RmsNorm(op("mul", Bind("weight"), Cast(_normal(_X32))), True, False),
    _RmsNorm(Cast(op("mul", _WEIGHT, _normal(_X32))), False, False),
    _RmsNorm(Cast(op("mul", _normal(_X32), op("add", _WEIGHT, 1.0))), False, True),
)
_ROOTS = {"aten.mul.Tensor", "aten._to_copy.default", "aten.type_as.default"}


def _rms_norm(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target not in _ROOTS:
        return None
    for kind in _RMS_NORMS:
        bound = match(kind.pattern, root.result)
        if bound is None:
            continue
        x, weight = raiser.raised(bound["x"]), raiser.weight(bound["weight"])
        if x is None or weight is None or dtype_of(x.value) != dtype_of(root.result):
            continue
        flags = modules.flag(kind.cast_before_weight), modules.flag(kind.one_plus_weight)
        dtype, shape = dtype_of(x.value), tensor(dtype_of(x.value), shape_of(x.value))
        if dtype_of(weight) != dtype:  # as where the residual is float32, and the product with it too
            weight = dialect.Cast(tensor(dtype, shape_of(weight)), weight).res
        return Raised(dialect.RmsNorm(shape, x.value, weight, modules.number(bound["eps"]), *flags).res, x.form)
    return None


_CENTRED = op("sub", _X32, op("mean", _X32, [-1], True))
_LAYER_NORM_BY_HAND = Cast(op("mul", _WEIGHT, _normal(_CENTRED)))


def _layer_norm(root: AtenOp, raiser: Raiser) -> Raised | None:
    if root.target == "aten.layer_norm.default":
        source, shape, weight, bias, eps, *_ = [*root.arguments, *[None] * 4][: max(5, len(root.arguments))]
        if shape != [shape_of(root.result)[-1]] or root.keywords:
            return None
        return _built_layer_norm(root, raiser, source, weight, bias, 1e-5 if eps is None else eps)
    bound = match(_LAYER_NORM_BY_HAND, root.result) if root.target in _ROOTS else None
    return _built_layer_norm(root, raiser, bound["x"], bound["weight"], None, bound["eps"]) if bound is not None else None


def _built_layer_norm(root: AtenOp, raiser: Raiser, source: Any, given_weight: Any, given_bias: Any, eps: float) -> Raised | None:
    x, weight = raiser.raised(source), raiser.weight(given_weight) if given_weight is not None else None
    bias = [found for found in [raiser.weight(given_bias)] if found is not None] if given_bias is not None else []
    if x is None or weight is None or (given_bias is not None and not bias):
        return None
    if dtype_of(x.value) != dtype_of(root.result) or shape_of(weight) != shape_of(x.value)[-1:]:
        return None
    kind = tensor(dtype_of(x.value), shape_of(x.value))
    return Raised(dialect.LayerNorm(kind, x.value, weight, bias, modules.number(eps)).res, x.form)


NORM_RULES: tuple[Rule, ...] = (_rms_norm, _layer_norm)
