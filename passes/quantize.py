"""quantize: the type each weight is stored in, and the recipe that makes it from checkpoint tensors.

Block-quantised sources (GGUF) are decoded to the plan's element type at load; kernels that keep them packed come with
targets that have such kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

from ..ir import dialect
from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.types import dtype_of, shape_of
from ..plans.program import DTYPE_BYTES
from ..plans.recipe import Concat, Recipe
from ..plans.schema import Weight
from ..targets.machine import Machine
from .select import kernel_named

Prepack = Literal["none", "onednn"]
ParameterRecipe = Callable[[str, str, Sequence[int], Sequence[int]], Recipe]
"""(parameter template, dtype, shape, layers) -> how it is made from checkpoint tensors."""


def plan_weights(
    module: ir.Module, machine: Machine, shapes: dict[str, tuple[int, ...]], recipe: ParameterRecipe
) -> tuple[Weight, ...]:
    """All weights of the step program, by name. `shapes` gives each parameter template's shape."""
    found: dict[str, Weight] = {}
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.weight":
            weight = _weight(operation, machine, shapes, recipe)
            before = found.get(weight.name)
            if before is not None:
                layers = tuple(sorted({*before.layers, *weight.layers}))
                weight = _make(operation, layers, before.prepack, shapes, recipe)
            found[weight.name] = weight
    return tuple(found[name] for name in sorted(found))


def split_packed(module: ir.Module, machine: Machine) -> ir.Module:
    """Give linears that want a packed weight an instance of their own where others read it plain (tied embeddings); in place."""
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.weight":
            continue
        users = [use.owner if isinstance(use.owner, ir.Operation) else use.owner.operation for use in operation.results[0].uses]
        packing = [user for user in users if _wants(user, operation, machine) != "none"]
        if packing and len(packing) < len(users):
            with ir.InsertionPoint(operation):
                sym = modules.text(modules.text_attribute(operation, "sym") + ".packed")
                packed = dialect.Weight(operation.results[0].type, sym, operation.attributes["parameters"]).res
            for user in packing:
                user.operands[1] = packed
    return module


def _wants(user: ir.Operation, weight: ir.Operation, machine: Machine) -> Prepack:
    is_matrix = user.name == "ts.linear" and user.operands[1] == weight.results[0]
    return kernel_named(machine, user).prepack if is_matrix else "none"


def _weight(operation: ir.Operation, machine: Machine, shapes: dict[str, tuple[int, ...]], recipe: ParameterRecipe) -> Weight:
    return _make(operation, _layers(operation), _prepack(operation, machine), shapes, recipe)


def _layers(operation: ir.Operation) -> tuple[int, ...]:
    parent = operation.parent
    if parent is None or parent.name != "ts.repeat":
        return ()
    first, count, stride = (modules.int_attribute(parent, name) for name in ("first", "count", "stride"))
    return tuple(range(first, first + count * stride, stride))


def _prepack(operation: ir.Operation, machine: Machine) -> Prepack:
    """The layout the weight's users want; all agree once `split_packed` has run."""
    users = (use.owner if isinstance(use.owner, ir.Operation) else use.owner.operation for use in operation.results[0].uses)
    wanted: set[Prepack] = {_wants(user, operation, machine) for user in users}
    (layout,) = wanted
    return layout


def _make(
    operation: ir.Operation,
    layers: tuple[int, ...],
    prepack: Prepack,
    shapes: dict[str, tuple[int, ...]],
    recipe: ParameterRecipe,
) -> Weight:
    value = operation.results[0]
    dtype, shape = dtype_of(value), tuple(size or 0 for size in shape_of(value))
    parts = [recipe(name, dtype, shapes[name], layers) for name in modules.text_list(operation, "parameters")]
    return Weight(
        name=modules.text_attribute(operation, "sym"),
        shape=shape,
        dtype=dtype,  # pyright: ignore[reportArgumentType]
        bytes=prod(shape) * DTYPE_BYTES[dtype],
        recipe=parts[0] if len(parts) == 1 else Concat(tuple(parts), 0),
        layers=layers,
        prepack=prepack,
    )
