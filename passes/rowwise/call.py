"""An ATen operation as row-wise rules see it: arguments by name, operands as shapes with the dimension that is tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import torch

from ...ir.mlir import ir
from ...ir.types import shape_of
from ..raising.pattern import AtenOp

Shape = tuple[int | None, ...]


class MixesTokens(Exception):
    """The operation is not row by row, or cannot be shown to be; says why."""


@dataclass(frozen=True)
class Operand:
    """ATen shape (None: the number of tokens) and the dimension that is tokens (None: the operand has none)."""

    shape: Shape
    axis: int | None

    @property
    def rank(self) -> int:
        return len(self.shape)


class Call:
    """`arguments` holds every argument of the operation's schema; tensors are `Operand`s. `result` is the result's ATen shape."""

    def __init__(self, target: str, arguments: dict[str, Any], result: Shape) -> None:
        self.target, self.arguments, self.result = target, arguments, result

    @property
    def name(self) -> str:
        return self.target.split(".")[1]

    def refuse(self, why: str) -> NoReturn:
        raise MixesTokens(f"{self.target} {why}")

    def require(self, condition: bool, why: str) -> None:
        if not condition:
            self.refuse(why)

    def operand(self, name: str) -> Operand:
        found = self.arguments.get(name)
        if not isinstance(found, Operand):
            self.refuse(f"has no tensor for {name}")
        return found

    def operands(self) -> list[Operand]:
        """Every tensor among the arguments, those in lists too."""
        return list(_tensors(list(self.arguments.values())))

    def integer(self, name: str) -> int:
        value = self.arguments.get(name)
        if isinstance(value, bool) or not isinstance(value, int):
            self.refuse(f"has no constant {name}")
        return value

    def dimension(self, name: str, rank: int) -> int:
        """A dimension counted from the front."""
        value = self.integer(name)
        self.require(-rank <= value < max(rank, 1), f"has no dimension {value}")
        return value % rank if rank else 0

    def dimensions(self, name: str, rank: int) -> set[int]:
        """A list of dimensions; all of them when none is given."""
        value = self.arguments.get(name)
        given = [value] if isinstance(value, int) else value
        if not given:
            return set(range(rank))
        self.require(all(isinstance(item, int) and -rank <= item < rank for item in given), f"reduces dimensions {given}")
        return {item % rank for item in given}

    def without_sizes(self) -> None:
        """Refuse an operation that computes with the number of tokens."""
        if any(_symbols(list(self.arguments.values()))):
            self.refuse("computes with the number of tokens")

    def static(self, *names: str) -> None:
        """Refuse unless these tensors, where given, do not depend on tokens."""
        for name in names:
            found = self.arguments.get(name)
            if isinstance(found, Operand) and found.axis is not None:
                self.refuse(f"takes {name} from tokens")


def _tensors(items: Any) -> Iterator[Operand]:
    for item in items:
        if isinstance(item, Operand):
            yield item
        elif isinstance(item, list):
            yield from _tensors(item)


def is_symbol(item: Any) -> bool:
    """Whether an argument is an expression in the number of tokens."""
    return isinstance(item, dict) and "symbol" in item


def is_tokens(item: Any) -> bool:
    return isinstance(item, dict) and item.get("symbol") == "tokens"


def _symbols(items: Any) -> Iterator[Any]:
    for item in items:
        if is_symbol(item):
            yield item
        elif isinstance(item, list):
            yield from _symbols(item)


@cache
def _schema(target: str) -> tuple[tuple[str, str], ...]:
    """(name, default as JSON) of each argument of an ATen operation."""
    _, name, overload = target.split(".")
    schema = getattr(getattr(torch.ops.aten, name), overload)._schema
    return tuple((argument.name, json.dumps(_plain(argument.default_value))) for argument in schema.arguments)


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, list, type(None))) else str(value)


def call_of(root: AtenOp, axis_of: Callable[[ir.Value], int | None]) -> Call:
    """The operation with the token dimension of each operand. Raises MixesTokens if it is no ATen operation."""
    parts = root.target.split(".")
    if len(parts) != 3 or parts[0] != "aten":
        raise MixesTokens(f"{root.target} is not an ATen operation")
    given: dict[str, Any] = {}
    for position, (name, default) in enumerate(_schema(root.target)):
        positional = root.arguments[position : position + 1]
        value = positional[0] if positional else root.keywords.get(name, json.loads(default))
        given[name] = _replaced(value, axis_of)
    return Call(root.target, given, shape_of(root.result))


def _replaced(item: Any, axis_of: Callable[[ir.Value], int | None]) -> Any:
    if isinstance(item, ir.Value):
        return Operand(shape_of(item), axis_of(item))
    if isinstance(item, list):
        return [_replaced(part, axis_of) for part in item]
    return item
