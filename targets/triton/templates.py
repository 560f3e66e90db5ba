"""What templates share: names, which count of rows they follow, operations that are one launch whatever the bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ...ir import module as modules
from ...ir.mlir import ir
from ...ir.types import shape_of
from ...plans.device_kernels import Parameter, Symbol
from .kernel import (
    Constexpr,
    DeviceOperation,
    DeviceStep,
    FunctionTemplate,
    Launch,
    Variants,
    always,
    merged,
    single,
)
from .operand import Layout, layout_of


def function_name(stem: str, dtype: str, parameters: Sequence[Parameter], constants: Mapping[str, object]) -> str:
    """Unique for the code: equal names mean equal functions."""
    depends = repr((stem, dtype, tuple(parameters), sorted(constants.items())))
    return f"{stem}.{dtype}.{hashlib.sha256(depends.encode()).hexdigest()[:12]}"


def layouts(operation: ir.Operation) -> tuple[tuple[Layout, ...], tuple[Layout, ...]]:
    """Those of an operation's operands and of its results."""
    return tuple(map(layout_of, operation.operands)), tuple(map(layout_of, operation.results))


def pointers(items: Sequence[Layout], first: int = 0) -> list[Parameter]:
    """A parameter for each operand, numbered from `first` on."""
    return [layout.pointer(first + at) for at, layout in enumerate(items)]


def rows_of(operation: ir.Operation) -> Symbol:
    """Which count an operation's rows are: logit_rows downstream of a ts.gather_rows, as lowering has it."""
    current: ir.Operation | None = operation
    while current is not None:
        if current.name == "ts.gather_rows":
            return "logit_rows"
        current = next((modules.maker_of(value) for value in current.operands if None in shape_of(value)), None)
    return "rows"


def one_launch(
    stem: str, launch: Launch, inputs: Sequence[Layout], outputs: Sequence[Layout], by: Symbol = "rows"
) -> DeviceOperation:
    """An operation that is one function, launched alike for every bucket."""
    return single(one_function(stem, launch, [item.dtype for item in inputs], [item.dtype for item in outputs], by))


def one_function(
    stem: str, launch: Launch, inputs: Sequence[str], outputs: Sequence[str], by: Symbol = "rows"
) -> FunctionTemplate:
    """A function that is launched alike for every bucket."""
    constants: dict[str, Constexpr | tuple[object, ...]] = {**launch.constants, "grid": launch.grid}
    name = function_name(stem, outputs[0], launch.parameters, constants)
    return FunctionTemplate(name, tuple(inputs), tuple(outputs), always(launch), by)  # pyright: ignore[reportArgumentType]


def left_out(step: DeviceStep, where: Callable[[int], bool], why: str = "") -> DeviceStep:
    """The same, but nothing in buckets of up to so many rows `where` another function does its work. `why` tells apart such
    functions that are left out in other buckets."""
    function = step.function

    def variants(bounds: Sequence[int]) -> Variants:
        return merged([(most, None if where(most) else function.variants([most])[0][1]) for most in bounds])

    ending = hashlib.sha256(why.encode()).hexdigest()[:8] if why else "apart"
    return replace(step, function=replace(function, name=f"{function.name}.{ending}", variants=variants))


def heads_and_width(layout: Layout) -> tuple[int, int, int]:
    """Heads, columns of a head and elements from head to head: one head where the elements of a row lie side by side."""
    if len(layout.shape) == 3 and layout.strides[1] != layout.shape[2]:
        return layout.shape[1] or 1, layout.shape[2] or 1, layout.strides[1]
    return 1, layout.columns, 0


def number(operation: ir.Operation, name: str) -> float:
    return modules.float_attribute(operation, name)


def flag(operation: ir.Operation, name: str) -> bool:
    return bool(modules.int_attribute(operation, name))
