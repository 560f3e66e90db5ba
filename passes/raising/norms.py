"""Rules of norms."""

from __future__ import annotations

from ...ir import dialect
from ...ir import module as modules
from ...ir.types import dtype_of, shape_of, tensor
from .pattern import AtenOp, Bind, Cast, Number, match, op
from .raised import Raised, Raiser, Rule

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


NORM_RULES: tuple[Rule, ...] = (_rms_norm,)
