"""The rule of attention."""

from __future__ import annotations

from ...ir import dialect
from ...ir import module as modules
from ...ir.types import dtype_of, shape_of, tensor
from .form import Form
from .head_widths import narrowed, widened
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
    label, of_values = modules.label_of(root.operation), shape_of(values[2])[2] or 0
    width = max(of_values, shape_of(values[0])[2] or 0)
    values = [widened(heads, width, label) for heads in values]
    kind = tensor(dtype_of(values[0]), [None, shape_of(values[0])[1], width])
    scores = modules.number(scale), modules.integer(window), modules.number(softcap)
    attended = dialect.Attention(kind, *values, sinks, modules.text(layer), *scores)
    modules.set_label(attended.operation, label)
    return Raised(narrowed(attended.res, of_values), Form.HEADS)


ATTENTION_RULES: tuple[Rule, ...] = (_attention,)
