"""What rules work with: raised values, what may be asked of the driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ...ir.mlir import ir
from .form import Form
from .pattern import AtenOp

FLOATING = {"f32", "bf16", "f16"}


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


def rows_of(raiser: Raiser, value: Any) -> ir.Value | None:
    """A value of [rows, features], whether or not its batch of one is there."""
    found = raiser.raised(value) if isinstance(value, ir.Value) else None
    return found.value if found is not None and found.form in (Form.ROWS, Form.FLAT) else None
