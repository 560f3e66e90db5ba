"""select: the layout each weight is stored in, as the chosen kernels want it, and the recipe that makes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from ..ir import dialect
from ..ir import module as modules
from ..ir.arrangement import arranged_shape, arrangement_of, set_arrangement
from ..ir.mlir import ir
from ..ir.placements import parse_shard
from ..ir.storage import KEPT, STORED, stored_type
from ..ir.types import dtype_of, placement_of, shape_of
from ..plans.recipe import Concat, Quantize, Recipe, Slice, Transpose
from ..plans.schema import MeshAxis, Weight
from ..plans.template import instantiate
from ..plans.weight_layout import Prepack, stored_bytes
from ..targets.machine import Machine
from .choose_weight_types import layers_of, users_of
from .select import kernel_named
from .weight_parts import numbers_of_rank, part_of_rank


class ParameterRecipes(Protocol):
    """How parameters (by template, with the layers it stands for) are made from checkpoint tensors."""

    def recipe(self, parameter_template: str, dtype: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        """As values of `dtype`."""
        ...

    def blocks(self, parameter_template: str, shape: Sequence[int], layers: Iterable[int] | None = None) -> Recipe:
        """As the blocks it is stored in."""
        ...


def plan_weights(
    module: ir.Module,
    machine: Machine,
    shapes: dict[str, tuple[int, ...]],
    recipe: ParameterRecipes,
    mesh: Sequence[MeshAxis] = (),
) -> tuple[Weight, ...]:
    """All weights of the step program, by name, as a rank of `mesh` has them. `shapes` gives each parameter's whole shape, layer
    indices filled in.

    Layers that differ in the shape of a weight have rows of their own.
    """
    found: dict[tuple[str, tuple[int, ...], str], Weight] = {}
    for operation in modules.walk(modules.step_block(module)):
        if operation.name == "ts.weight":
            weight = _weight(operation, machine, shapes, recipe, mesh)
            key = weight.name, weight.shape, weight.dtype
            before = found.get(key)
            if before is not None:
                layers = tuple(sorted({*before.layers, *weight.layers}))
                weight = _make(operation, layers, before.prepack, shapes, recipe, mesh)
            found[key] = weight
    return tuple(found[key] for key in sorted(found))


def split_packed(module: ir.Module, machine: Machine) -> ir.Module:
    """Give users that pack a weight an instance of their own where others cannot read it so (tied embeddings); in place."""
    for operation in list(modules.walk(modules.step_block(module))):
        if operation.name != "ts.weight":
            continue
        users = users_of(operation)
        packing = [(user, at) for user, at in users if _wanted(user, at, machine) != "none"]
        layouts = {_wanted(user, at, machine) for user, at in packing}
        others = [user for user, at in users if (user, at) not in packing]
        if packing and not all(layouts <= {*kernel_named(machine, user).reads} for user in others):
            with ir.InsertionPoint(operation):
                sym = modules.text(modules.text_attribute(operation, "sym") + ".packed")
                packed = dialect.Weight(operation.results[0].type, sym, operation.attributes["parameters"]).res
            set_arrangement(modules.made_by(packed), arrangement_of(operation))
            for name in (STORED, KEPT):
                if name in operation.attributes:
                    modules.made_by(packed).attributes[name] = operation.attributes[name]
                    del operation.attributes[name]
            for user, at in packing:
                user.operands[at] = packed
    return module


def _wanted(user: ir.Operation, operand: int, machine: Machine) -> Prepack:
    """The layout that the user's kernel packs this operand into."""
    kernel = kernel_named(machine, user)
    # planes are of blocks alone, whatever else the kernel reads beside them
    left = kernel.prepack == "planes" and STORED not in modules.made_by(user.operands[operand]).attributes
    return kernel.prepack if operand in kernel.packs and not left else "none"


def _weight(
    operation: ir.Operation,
    machine: Machine,
    shapes: dict[str, tuple[int, ...]],
    recipe: ParameterRecipes,
    mesh: Sequence[MeshAxis],
) -> Weight:
    return _make(operation, layers_of(operation), _prepack(operation, machine), shapes, recipe, mesh)


def _prepack(operation: ir.Operation, machine: Machine) -> Prepack:
    """The layout the weight's users agree on once `split_packed` has run: the packed one, if any of them packs it."""
    wanted: list[Prepack] = [layout for user, at in users_of(operation) if (layout := _wanted(user, at, machine)) != "none"]
    assert len({*wanted}) <= 1, f"{operation} is packed in two ways"
    if wanted:
        return wanted[0]
    return "panel" if STORED in operation.attributes else "none"


def _make(
    operation: ir.Operation,
    layers: tuple[int, ...],
    prepack: Prepack,
    shapes: dict[str, tuple[int, ...]],
    recipe: ParameterRecipes,
    mesh: Sequence[MeshAxis],
) -> Weight:
    value = operation.results[0]
    dtype, shape = dtype_of(value), tuple(size or 0 for size in shape_of(value))
    stored = stored_type(operation, dtype)
    return Weight(
        name=modules.text_attribute(operation, "sym"),
        shape=shape,
        dtype=stored,  # pyright: ignore[reportArgumentType]
        bytes=stored_bytes(shape, stored, prepack),
        recipe=_recipe(operation, layers, dtype, stored, shapes, recipe, mesh),
        layers=layers,
        prepack=prepack,
    )


def _recipe(
    operation: ir.Operation,
    layers: tuple[int, ...],
    dtype: str,
    stored: str,
    shapes: dict[str, tuple[int, ...]],
    recipe: ParameterRecipes,
    mesh: Sequence[MeshAxis],
) -> Recipe:
    names, steps = modules.text_list(operation, "parameters"), arrangement_of(operation)
    if not names:
        return numbers_of_rank(operation, mesh)
    shape_of_part = {name: shapes[instantiate(name, layers[0]) if layers else name] for name in names}
    value = operation.results[0]

    def of_rank(whole: Recipe) -> Recipe:
        arranged = [[size or 0 for size in arranged_shape(shape_of_part[name], steps)] for name in names]
        return part_of_rank(value, whole, arranged, mesh)

    def valued(dtype: str) -> Recipe:
        made = ((recipe.recipe(name, dtype, shape_of_part[name], layers or None), shape_of_part[name]) for name in names)
        return of_rank(_joined([_arranged(part, shape, steps) for part, shape in made]))

    if stored == dtype:
        return valued(dtype)
    kept = modules.text_attribute(operation, KEPT)
    if kept and not steps and (stored == "e4m3_128" or not _cuts_rows(value)):
        joined = of_rank(_joined([recipe.blocks(name, shape_of_part[name], layers or None) for name in names]))
        return joined if kept in (stored, "f8_e4m3") else Quantize(joined, stored)
    return Quantize(valued("f32"), stored)


def _cuts_rows(value: ir.Value) -> bool:
    """Whether an axis cuts the dimension that blocks lie along."""
    cuts = (parse_shard(placement) for placement in placement_of(value).values())
    return any(cut is not None and cut.dimension == len(shape_of(value)) - 1 for cut in cuts)


def _joined(parts: list[Recipe]) -> Recipe:
    return parts[0] if len(parts) == 1 else Concat(tuple(parts), 0)


def _arranged(recipe: Recipe, shape: Sequence[int], steps: Sequence[str]) -> Recipe:
    """The parameter's recipe followed by the steps of ir/arrangement.py."""
    for step in steps:
        rank = len(shape)
        if step == "transpose":
            recipe = Transpose(recipe, (*range(rank - 2), rank - 1, rank - 2))
        else:
            recipe = Concat(tuple(Slice(recipe, 1, start, shape[1], 2) for start in (0, 1)), 1)
        shape = [size or 0 for size in arranged_shape(shape, [step])]
    return recipe
