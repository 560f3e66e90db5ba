"""Weights whose parameters are rearranged, as operations that keep them in another layout need."""

from __future__ import annotations

from ...ir import dialect
from ...ir.arrangement import arranged_shape, arrangement_of, set_arrangement
from ...ir.mlir import ir
from ...ir.types import dtype_of, shape_of, tensor


def arranged_weight(weight: ir.Value, steps: list[str]) -> ir.Value:
    """The weight with its parameter rearranged first."""
    owner = weight.owner
    assert not isinstance(owner, ir.Block)
    source = owner if isinstance(owner, ir.Operation) else owner.operation
    kind = tensor(dtype_of(weight), arranged_shape(shape_of(weight), steps))
    made = dialect.Weight(kind, source.attributes["sym"], source.attributes["parameters"])
    set_arrangement(made.operation, [*arrangement_of(source), *steps])
    return made.res
