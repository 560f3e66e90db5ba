"""A rank's part of a weight: the recipe of the whole becomes one of the part, cut as near to the sources as it goes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import msgspec

from ..ir.mlir import ir
from ..ir.placements import PARTIAL, Segment, Shard, parse_shard
from ..ir.types import placement_of
from ..plans.recipe import Addend, Cast, Concat, Part, Recipe, Stack, Stretch
from ..plans.schema import MeshAxis


def part_of_rank(value: ir.Value, recipe: Recipe, shapes: Sequence[Sequence[int]], mesh: Sequence[MeshAxis]) -> Recipe:
    """The recipe of what a rank has of a weight, from that of the whole: parameters of `shapes` joined along dimension 0."""
    placements = placement_of(value)
    for axis in mesh:
        placement = placements.get(axis.name, "")
        cut = parse_shard(placement)
        if placement == PARTIAL:
            recipe = Addend(recipe, axis.name)
        elif cut is not None and axis.size > 1:
            recipe = sunk(recipe, axis.name, cut.dimension, _stretches(cut, shapes, axis.size), shapes)
            shapes = [_local(shapes, cut, axis.size)]
    return recipe


def _local(shapes: Sequence[Sequence[int]], cut: Shard, ranks: int) -> list[int]:
    joined = list(shapes[0])
    joined[0] = sum(shape[0] for shape in shapes)
    joined[cut.dimension] = cut.local_size(joined[cut.dimension], ranks)
    return joined


def _stretches(cut: Shard, shapes: Sequence[Sequence[int]], ranks: int) -> tuple[Stretch, ...]:
    """Of the dimension that is cut, in the whole weight. Each parameter is one segment or more."""
    sizes = [shape[0] for shape in shapes] if cut.dimension == 0 else [shapes[0][cut.dimension]]
    if not cut.segments:
        whole = sum(sizes)
        return (Stretch(0, whole, cut.local_size(whole, ranks), cut.copies),)
    segments, found, end = list(cut.segments), [], 0
    for size in sizes:
        stop = end + size
        while end < stop:
            segment: Segment = segments.pop(0)
            following = min(end + segment.size * ranks // segment.copies, stop)
            found.append(Stretch(end, following, segment.size, segment.copies))
            end = following
    assert not segments, f"{cut} has more segments than {shapes}"
    return tuple(found)


def sunk(recipe: Recipe, axis: str, dimension: int, stretches: tuple[Stretch, ...], shapes: Sequence[Sequence[int]]) -> Recipe:
    """The parts of a recipe's value, made of parts of its sources where the steps between allow it: less is read."""
    if isinstance(recipe, Cast):
        return Cast(sunk(recipe.of, axis, dimension, stretches, shapes), recipe.dtype)
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
