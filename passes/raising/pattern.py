"""Bottom-up unification over `ts.aten` operations.

A pattern is matched against a value. Matching binds names; a name met twice must be bound to the same thing. `mul` and
`add` are tried in both orders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ...ir.mlir import ir
from ...ir.module import text_attribute
from ...ir.types import dtype_of

Bindings = dict[str, Any]
COMMUTATIVE = {"aten.mul.Tensor", "aten.add.Tensor"}


@dataclass(frozen=True)
class Bind:
    """Matches anything and binds it."""

    name: str


@dataclass(frozen=True)
class Number:
    """Matches a number and binds it."""

    name: str


@dataclass(frozen=True)
class Op:
    """Matches a result of an ATen operation (`target` without "aten." and overload) whose arguments match.

    `output` is the number of the result, of those that have several.
    """

    target: str
    arguments: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...] = ()
    output: int = 0


@dataclass(frozen=True)
class Cast:
    """Matches `inner`, whether or not a cast stands between; binds the cast's result element type to `name` (None: no cast)."""

    inner: Any
    name: str = ""


@dataclass(frozen=True)
class Either:
    options: tuple[Any, ...]


def op(target: str, *arguments: Any, **keywords: Any) -> Op:
    return Op(target, arguments, tuple(keywords.items()))


def result(output: int, target: str, *arguments: Any, **keywords: Any) -> Op:
    """Result number `output` of an operation with several."""
    return Op(target, arguments, tuple(keywords.items()), output)


def either(*options: Any) -> Either:
    return Either(options)


class AtenOp:
    """A `ts.aten` operation with its arguments decoded: operands as values, the rest as plain data."""

    def __init__(self, operation: ir.Operation) -> None:
        self.operation = operation
        self.target = text_attribute(operation, "target")
        decoded = _decode(text_attribute(operation, "arguments"))
        operands = list(operation.operands)
        self.arguments = [_place(item, operands) for item in decoded["args"]]
        self.keywords = {name: _place(item, operands) for name, item in decoded["kwargs"].items()}
        self.output: int = decoded.get("result", 0)

    @property
    def is_cast(self) -> bool:
        """Whether the operation only changes the element type."""
        return self.target == "aten.type_as.default" or (
            self.target == "aten._to_copy.default" and list(self.keywords) == ["dtype"]
        )

    @property
    def result(self) -> ir.Value:
        return self.operation.results[0]


@lru_cache(maxsize=4096)
def _decode(text: str) -> Any:
    return json.loads(text)


def _place(item: Any, operands: list[ir.Value]) -> Any:
    if isinstance(item, list):
        return [_place(part, operands) for part in item]
    if isinstance(item, dict) and "operand" in item:
        return operands[item["operand"]]
    return item


def defining(value: ir.Value) -> AtenOp | None:
    """The ATen operation a value comes from, or None (block arguments, weights, inputs)."""
    owner = value.owner
    if isinstance(owner, ir.Block):
        return None
    operation: ir.Operation = owner if isinstance(owner, ir.Operation) else owner.operation
    return AtenOp(operation) if operation.name == "ts.aten" else None


def match(pattern: Any, item: Any) -> Bindings | None:
    """The first set of bindings that makes the pattern equal to the item, or None."""
    return next(matches(pattern, item), None)


def matches(pattern: Any, item: Any) -> Iterator[Bindings]:
    """Every set of bindings that makes the pattern equal to the item: a cast may be looked through or be what is bound."""
    return _match(pattern, item, {})


def _match(pattern: Any, item: Any, bound: Bindings) -> Iterator[Bindings]:
    handler = _HANDLERS.get(type(pattern))
    if handler is not None:
        yield from handler(pattern, item, bound)
    elif isinstance(pattern, list):
        if isinstance(item, list) and len(item) == len(pattern):
            yield from _match_all(pattern, item, bound)
    elif type(item) is type(pattern) and item == pattern:
        yield bound


def _bind(name: str, item: Any, bound: Bindings) -> Iterator[Bindings]:
    if name not in bound:
        yield {**bound, name: item}
    elif bound[name] == item:
        yield bound


def _match_bind(pattern: Bind, item: Any, bound: Bindings) -> Iterator[Bindings]:
    yield from _bind(pattern.name, item, bound)


def _match_number(pattern: Number, item: Any, bound: Bindings) -> Iterator[Bindings]:
    if isinstance(item, (int, float)) and not isinstance(item, bool):
        yield from _bind(pattern.name, item, bound)


def _match_op(pattern: Op, item: Any, bound: Bindings) -> Iterator[Bindings]:
    found = defining(item) if isinstance(item, ir.Value) else None
    if found is None or found.target.split(".")[1] != pattern.target or found.output != pattern.output:
        return
    keywords = dict(pattern.keywords)
    if found.keywords.keys() != keywords.keys():
        return
    wanted = [*pattern.arguments, *keywords.values()]
    given = [*found.arguments, *(found.keywords[name] for name in keywords)]
    if len(wanted) != len(given):
        return
    yield from _match_all(wanted, given, bound)
    if found.target in COMMUTATIVE and len(given) == 2:
        yield from _match_all(wanted, given[::-1], bound)


def _match_all(patterns: list[Any], items: list[Any], bound: Bindings) -> Iterator[Bindings]:
    if not patterns:
        yield bound
        return
    for extended in _match(patterns[0], items[0], bound):
        yield from _match_all(patterns[1:], items[1:], extended)


def _match_cast(pattern: Cast, item: Any, bound: Bindings) -> Iterator[Bindings]:
    found = defining(item) if isinstance(item, ir.Value) else None
    if found is not None and found.is_cast:
        dtype = dtype_of(found.result)
        for extended in _match(pattern.inner, found.arguments[0], bound):
            yield from _bind(pattern.name, dtype, extended) if pattern.name else iter([extended])
    for extended in _match(pattern.inner, item, bound):
        yield from _bind(pattern.name, None, extended) if pattern.name else iter([extended])


def _match_either(pattern: Either, item: Any, bound: Bindings) -> Iterator[Bindings]:
    for option in pattern.options:
        yield from _match(option, item, bound)


_HANDLERS: dict[type, Callable[[Any, Any, Bindings], Iterator[Bindings]]] = {
    Bind: _match_bind,
    Number: _match_number,
    Op: _match_op,
    Cast: _match_cast,
    Either: _match_either,
}
