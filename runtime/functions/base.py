"""What every function of the allow-list is given: operands to bind to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch

from ...plans.errors import PlanError
from ...plans.program import Attribute
from ...plans.template import instantiate
from .context import Context, Launch

# Up to this many f32 elements numpy's smaller cost per call beats torch's threads.
SMALL_ELEMENTS = 32768


@dataclass(frozen=True)
class Operands:
    """The tensors and attributes of one call. Anything a function cannot run on is refused here, at preparation.

    `label` (a template when `layer` is given) says where the call comes from.
    """

    function: str
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    context: Context = field(default_factory=Context)
    label: str = ""
    layer: int | None = None

    def refuse(self, expected: str, got: str) -> NoReturn:
        raise PlanError(
            f"The plan calls the function {self.function} in a way it cannot run.",
            where=(self.label if self.layer is None else instantiate(self.label, self.layer)) or self.function,
            expected=expected,
            got=got,
            fix="compile the plan again with tokenspeed-compile",
        )

    def require(self, condition: bool, expected: str) -> None:
        if not condition:
            self.refuse(expected, self.describe())

    def describe(self) -> str:
        def shapes(tensors: list[torch.Tensor]) -> str:
            return ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}" for t in tensors)

        return f"({shapes(self.inputs)}) -> ({shapes(self.outputs)}), attributes {self.attributes}"

    def take(self, inputs: int, outputs: int, optional: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Inputs and outputs, checked for their number (`optional` inputs may be absent)."""
        enough = inputs <= len(self.inputs) <= inputs + optional and len(self.outputs) == outputs
        self.require(enough, f"{inputs} inputs (and up to {optional} more) and {outputs} outputs")
        return self.inputs, self.outputs

    def number(self, name: str, default: float | None = None) -> float:
        value = self.attributes.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            self.refuse(f"a finite number in attribute {name}", repr(value))
        return float(value)

    def integer(self, name: str, default: int | None = None) -> int:
        value = self.attributes.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(f"an integer in attribute {name}", repr(value))
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.attributes.get(name, default)
        if not isinstance(value, bool):
            self.refuse(f"true or false in attribute {name}", repr(value))
        return value

    def text(self, name: str) -> str:
        value = self.attributes.get(name)
        if not isinstance(value, str):
            self.refuse(f"text in attribute {name}", repr(value))
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str | None = None) -> str:
        value = self.attributes.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.refuse(f"one of {', '.join(choices)} in attribute {name}", repr(value))
        return value

    def floating(self, *tensors: torch.Tensor) -> None:
        """All of one floating-point type."""
        kinds = {tensor.dtype for tensor in tensors}
        self.require(len(kinds) == 1 and kinds <= {torch.float32, torch.bfloat16, torch.float16}, "one floating-point type")

    def typed(self, dtype: torch.dtype, *tensors: torch.Tensor) -> None:
        for tensor in tensors:
            self.require(tensor.dtype == dtype, f"operands of type {dtype}")

    def shaped(self, tensor: torch.Tensor, *shape: int) -> None:
        self.require(tuple(tensor.shape) == shape, f"an operand of shape {list(shape)}")


def is_small(*tensors: torch.Tensor) -> bool:
    """Whether numpy should do the work: f32 and few elements."""
    return all(tensor.dtype == torch.float32 for tensor in tensors) and max(t.numel() for t in tensors) <= SMALL_ELEMENTS


def row_blocks(rows: int, elements_per_row: int, limit: int) -> list[tuple[int, int]]:
    """Row ranges of at most `limit` elements each (at least one row)."""
    size = max(1, limit // max(1, elements_per_row))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def chain(launches: list[Launch]) -> Launch:
    """One launch that runs several."""
    if len(launches) == 1:
        return launches[0]

    def run() -> None:
        for launch in launches:
            launch()

    return run
