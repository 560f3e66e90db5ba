"""Which entries of a whole weight a rank has, as its recipe says: by dimension, since parts cut along dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .counter_weights import FloatArray, counter_elements, counter_weight
from .recipe import Addend, Cast, Concat, Part, Quantize, Recipe, Stack, inputs_of
from .recipe_shapes import SourceLookup, infer

Indices = NDArray[np.int64]
"""Places in a dimension of the whole; -1 where a rank's part was filled up with zeros."""


@dataclass(frozen=True)
class RankPart:
    """A rank's weight as entries of the whole one, of `shape`: those at `places` of each dimension; zeros unless `present`."""

    shape: tuple[int, ...]
    places: tuple[Indices, ...]
    present: bool = True

    def counter_rows(self, name: str, start: int = 0, stop: int | None = None) -> FloatArray:
        """Rows [start, stop) of this part of counter weight `name` (plans/counter_weights.py), float32."""
        if not self.shape:
            whole = counter_weight(name, ())
            return whole if self.present else np.zeros_like(whole)
        return self._elements(name, (self.places[0][start:stop], *self.places[1:]))

    def counter_rows_of_entry(self, name: str, index: int, start: int, stop: int) -> FloatArray:
        """The same of entry `index` along the first dimension, of three or more."""
        own = (self.places[0][index : index + 1], self.places[1][start:stop], *self.places[2:])
        return self._elements(name, own)[0]

    def _elements(self, name: str, own: tuple[Indices, ...]) -> FloatArray:
        if not self.present:
            return np.zeros([len(each) for each in own], np.float32)
        values = counter_elements(name, self.shape, [np.maximum(each, 0) for each in own])
        for dimension, each in enumerate(own):
            if len(each) and each.min() < 0:
                values[(slice(None),) * dimension + (each < 0,)] = 0
        return values


def is_cut(recipe: Recipe) -> bool:
    """Whether ranks differ in what they have of it."""
    return isinstance(recipe, Part | Addend) or any(map(is_cut, inputs_of(recipe)))


def rank_part(recipe: Recipe, lookup: SourceLookup, coordinates: Mapping[str, int]) -> RankPart:
    """What the rank at `coordinates` (0 on axes that are left out) has of a weight.

    Raises ValueError where that is not the same part of every row, or columns, of the whole.
    """
    match recipe:
        case Part():
            of = rank_part(recipe.of, lookup, coordinates)
            own = of.places[recipe.dimension]
            parts = []
            for stretch in recipe.stretches:
                first, stop = stretch.of_rank(coordinates.get(recipe.axis, 0))
                parts += [own[first:stop], np.full(stretch.size - (stop - first), -1)]
            return replace(of, places=_with(of.places, recipe.dimension, np.concatenate(parts)))
        case Addend():
            of = rank_part(recipe.of, lookup, coordinates)
            return replace(of, present=of.present and not coordinates.get(recipe.axis, 0))
        case Cast() | Quantize():
            return rank_part(recipe.of, lookup, coordinates)
        case Concat() if is_cut(recipe):
            parts = [rank_part(part, lookup, coordinates) for part in recipe.parts]
            whole = _alike([replace(part, places=_without(part.places, recipe.dimension)) for part in parts], recipe.dimension)
            joined, size = [], 0
            for part in parts:
                own = part.places[recipe.dimension]
                joined.append(np.where(own < 0, own, own + size))
                size += part.shape[recipe.dimension]
            shape = (*whole.shape[: recipe.dimension], size, *whole.shape[recipe.dimension + 1 :])
            places = (*whole.places[: recipe.dimension], np.concatenate(joined), *whole.places[recipe.dimension :])
            return RankPart(shape, places, whole.present)
        case Stack() if is_cut(recipe):
            whole = _alike([rank_part(part, lookup, coordinates) for part in recipe.parts], None)
            shape = (*whole.shape[: recipe.dimension], len(recipe.parts), *whole.shape[recipe.dimension :])
            places = (*whole.places[: recipe.dimension], np.arange(len(recipe.parts)), *whole.places[recipe.dimension :])
            return RankPart(shape, places, whole.present)
        case _ if is_cut(recipe):
            raise ValueError(f"{type(recipe).__name__.lower()} of a part")
        case _:
            shape, _ = infer(recipe, lookup)
            return RankPart(shape, tuple(np.arange(size) for size in shape))


def _with(places: tuple[Indices, ...], dimension: int, own: Indices) -> tuple[Indices, ...]:
    return (*places[:dimension], own, *places[dimension + 1 :])


def _without(places: tuple[Indices, ...], dimension: int) -> tuple[Indices, ...]:
    return (*places[:dimension], *places[dimension + 1 :])


def _alike(parts: Sequence[RankPart], but: int | None) -> RankPart:
    """The first of parts that are the same entries of their wholes, whose sizes may differ along one dimension."""
    first = parts[0]
    for other in parts[1:]:
        same = len(other.places) == len(first.places) and all(map(np.array_equal, other.places, first.places))
        sizes = len(other.shape) == len(first.shape) and all(
            size == own or at == but for at, (size, own) in enumerate(zip(other.shape, first.shape, strict=True))
        )
        if not same or not sizes or other.present != first.present:
            raise ValueError("parts that differ where they are joined")
    return first
