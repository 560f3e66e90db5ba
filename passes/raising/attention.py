"""The rule of attention."""

from __future__ import annotations

from ...ir import dialect
from ...ir import module as modules
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .pattern import AtenOp
from .raised import Raised, Raiser, Rule


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


ATTENTION_RULES: tuple[Rule, ...] = (_attention,)
