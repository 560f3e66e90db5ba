"""Rules of activations."""

from __future__ import annotations

from typing import Any

from ...ir import dialect
from ...ir import module as modules
from ...ir.types import shape_of
from .form import Form
from .pattern import AtenOp, Bind, match, op
from .raised import Raised, Raiser, Rule, rows_of

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
        gate, up = rows_of(raiser, bound["gate"]), rows_of(raiser, bound["up"])
        if gate is not None and up is not None and shape_of(gate) == shape_of(up):
            made = dialect.GatedActivation(gate.type, gate, up, modules.text(name)).res
            return Raised(made, Form.at(shape_of(root.result), len(shape_of(root.result)) - 2))
    return None


ACTIVATION_RULES: tuple[Rule, ...] = (_gated_activation,)
