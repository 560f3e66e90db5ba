"""A rank's part of a weight: the recipe of the whole becomes one of the part, cut as near to the sources as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import msgspec

from ..ir import module as modules
from ..ir.mlir import ir
from ..ir.placements import PARTIAL, Shard, parse_shard
from ..ir.types import placement_of
from ..plans.recipe import Addend, Cast, Concat, Numbers, Part, Recipe, Stack, Stretch
from ..plans.schema import MeshAxis


def part_of_rank(value: ir.Value, recipe: Recipe, shapes: Sequence[Sequence[int]], mesh: Sequence[MeshAxis]) -> Recipe:
    """The recipe of what a rank has of a weight, from that of the whole: parameters of `shapes` joined along dimension 0."""
    placements = placement_of(value)
    cuts = [(axis, cut) for axis in mesh if axis.size > 1 and (cut := parse_shard(placements.get(axis.name, ""))) is not None]
    whole = {dimension: _segments(dimension, cuts, shapes) for dimension in {cut.dimension for _, cut in cuts}}
    parts = [list(shape) for shape in shapes]
    for axis, cut in cuts:
        stretches, left, start = [], [], 0
        for size, copies in zip(whole[cut.dimension], _copies(cut), strict=True):
            left.append(-(-size * copies // axis.size))
            stretches.append(Stretch(start, start + size, left[-1], copies))
            start += size
        recipe = sunk(recipe, axis.name, cut.dimension, tuple(stretches), parts)
        parts = _local(parts, cut.dimension, stretches)
        whole[cut.dimension] = left
    for axis in mesh:
        if placements.get(axis.name) == PARTIAL:
            recipe = Addend(recipe, axis.name)
    return recipe


def numbers_of_rank(weight: ir.Operation, mesh: Sequence[MeshAxis]) -> Recipe:
    """The recipe of a rank's part of a weight that is numbers."""
    count = modules.int_attribute(weight, "count")
    return part_of_rank(weight.results[0], Numbers(count), [(count,)], mesh)


def _copies(cut: Shard) -> list[int]:
    return [segment.copies for segment in cut.segments] or [cut.copies]


def _segments(dimension: int, cuts: Sequence[tuple[MeshAxis, Shard]], shapes: Sequence[Sequence[int]]) -> list[int]:
    """Sizes of the segments of a dimension in the whole weight. Each parameter is one segment or more."""
    sizes = [shape[0] for shape in shapes] if dimension == 0 else [shapes[0][dimension]]
    along = [(axis, cut) for axis, cut in cuts if cut.dimension == dimension]
    segments = along[0][1].segments
    if not segments:
        return [sum(sizes)]
    made = [segment.size for segment in segments]
    for axis, cut in along:
        made = [size * axis.size // segment.copies for size, segment in zip(made, cut.segments, strict=True)]
    found: list[int] = []
    for size in sizes:
        left = size
        while left > 0:
            # a parameter that is one segment may have been filled up
            found.append(min(made[len(found)], left))
            left -= found[-1]
    assert len(found) == len(made), f"{segments} are not the segments of {shapes}"
    return found


def _local(shapes: list[list[int]], dimension: int, stretches: Sequence[Stretch]) -> list[list[int]]:
    """Shapes of what the parameters are now; of their join, where a part goes over an end."""
    if dimension:
        return [[*shape[:dimension], sum(item.size for item in stretches), *shape[dimension + 1 :]] for shape in shapes]
    owners = _by_part(stretches, [shape[0] for shape in shapes])
    if owners is None:
        return [[sum(item.size for item in stretches), *shapes[0][1:]]]
    return [[sum(item.size for item in own), *shape[1:]] for own, shape in zip(owners, shapes, strict=True)]


def sunk(recipe: Recipe, axis: str, dimension: int, stretches: tuple[Stretch, ...], shapes: Sequence[Sequence[int]]) -> Recipe:
    """The parts of a recipe's value, made of parts of its sources where the steps between allow it: less is read."""
    if isinstance(recipe, Cast):
        return Cast(sunk(recipe.of, axis, dimension, stretches, shapes), recipe.dtype)
    if isinstance(recipe, Part) and dimension != recipe.dimension:
        return msgspec.structs.replace(recipe, of=sunk(recipe.of, axis, dimension, stretches, shapes))
    if isinstance(recipe, Stack) and dimension != recipe.dimension:
        inner = dimension - (dimension > recipe.dimension)
        parts = tuple(sunk(part, axis, inner, stretches, [()]) for part in recipe.parts)
        return msgspec.structs.replace(recipe, parts=parts)
    if isinstance(recipe, Concat) and dimension != recipe.dimension:
        parts = tuple(sunk(part, axis, dimension, stretches, [()]) for part in recipe.parts)
        return msgspec.structs.replace(recipe, parts=parts)
    if isinstance(recipe, Concat) and len(recipe.parts) == len(shapes) and prod(len(shape) for shape in shapes):
        owners = _by_part(stretches, [shape[dimension] for shape in shapes])
        if owners is not None:
            pairs = zip(recipe.parts, owners, shapes, strict=True)
            parts = tuple(sunk(part, axis, dimension, own, [shape]) for part, own, shape in pairs)
            return msgspec.structs.replace(recipe, parts=parts)
    return Part(recipe, axis, dimension, stretches)


def _by_part(stretches: Sequence[Stretch], sizes: Sequence[int]) -> list[tuple[Stretch, ...]] | None:
    """The stretches of each of several things behind each other; None where one goes over an end."""
    found, start = [], 0
    for size in sizes:
        own = [item for item in stretches if start <= item.start and item.stop <= start + size]
        if sum(item.stop - item.start for item in own) != size:
            return None
        found.append(tuple(Stretch(item.start - start, item.stop - start, item.size, item.copies) for item in own))
        start += size
    return found
