"""How close the choices of experts in a golden case were: rounding turns those that are all but tied, and moves logits far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..ir.mixture import routing_of
from ..ir.mlir import ir
from ..ir.reference import Interpreter, StepRows

_RESOLUTION = {"f32": 2.0**-23, "bf16": 2.0**-8, "f16": 2.0**-11}


@dataclass
class RouteWatcher(Interpreter):
    """An interpreter that notes the least margin of all choices it met (see `margin`)."""

    least: float = float("inf")

    def _operation(
        self, operation: ir.Operation, values: dict[ir.Value, Any], rows: StepRows, index: int
    ) -> Sequence[Tensor | str]:
        if operation.name == "ts.moe_route":
            self.least = min(self.least, margin(operation, values[operation.operands[0]]))
        return super()._operation(operation, values, rows, index)

    def may_turn(self, dtype: str) -> bool:
        """Whether rounding logits to `dtype` may have turned a choice."""
        return self.least < 2 * _RESOLUTION[dtype]


def margin(operation: ir.Operation, logits: Tensor) -> float:
    """By how much the last expert chosen is ahead of the first that is not, as a share of the largest logit, at the closest row.

    0 where it is not known, because a bias or groups have a say as well.
    """
    routing = routing_of(operation)
    if len(operation.operands) > 1 or routing.groups > 1:
        return 0.0
    if routing.top_k == logits.shape[1]:
        return float("inf")
    ordered = logits.sort(dim=1, descending=True).values
    ahead = ordered[:, routing.top_k - 1] - ordered[:, routing.top_k]
    return float((ahead / logits.abs().amax(1)).min())
