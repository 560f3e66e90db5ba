"""How a parameter is rearranged before it is a weight: the layout of `ts` operations made from another one's."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from . import module as modules
from .mlir import ir

ATTRIBUTE = "arrangement"
STEPS = ("transpose", "deinterleave")
"""transpose: the last two dimensions swap. deinterleave: along dimension 1 entries 0, 2, 4, ... come before 1, 3, 5, ..."""


def arrangement_of(weight: ir.Operation) -> list[str]:
    """The steps of a `ts.weight`, in order; none when its parameters are taken as they are."""
    return modules.text_list(weight, ATTRIBUTE) if ATTRIBUTE in weight.attributes else []


def set_arrangement(weight: ir.Operation, steps: Sequence[str]) -> None:
    if steps:
        weight.attributes[ATTRIBUTE] = ir.ArrayAttr.get([modules.text(step) for step in steps])


def arranged_shape(shape: Sequence[int | None], steps: Sequence[str]) -> tuple[int | None, ...]:
    return (*shape[:-2], shape[-1], shape[-2]) if list(steps).count("transpose") % 2 else tuple(shape)


def arranged(parameter: Tensor, steps: Sequence[str]) -> Tensor:
    for step in steps:
        if step == "transpose":
            parameter = parameter.transpose(-1, -2)
        else:
            parameter = parameter.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)
    return parameter
