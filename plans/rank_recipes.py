"""Recipes as one rank evaluates them: of experts side by side, only those that it has."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from .recipe import Concat, Numbers, Part, Recipe, Source, Stack


def recipe_of_rank(recipe: Recipe, coordinates: Mapping[str, int]) -> Recipe:
    """The same value on the rank at these coordinates (0 on an axis that is not named), from fewer sources where parts of a
    stack are whole entries of it: the others are neither read nor checked."""
    if isinstance(recipe, Source | Numbers):
        return recipe
    if isinstance(recipe, Concat | Stack):
        return msgspec.structs.replace(recipe, parts=tuple(recipe_of_rank(part, coordinates) for part in recipe.parts))
    if isinstance(recipe, Part) and isinstance(recipe.of, Stack) and recipe.dimension == recipe.of.dimension:
        first, stop = recipe.stretches[0].of_rank(coordinates.get(recipe.axis, 0))
        if len(recipe.stretches) == 1 and stop - first == recipe.stretches[0].size:
            return recipe_of_rank(msgspec.structs.replace(recipe.of, parts=recipe.of.parts[first:stop]), coordinates)
    return msgspec.structs.replace(recipe, of=recipe_of_rank(recipe.of, coordinates))
