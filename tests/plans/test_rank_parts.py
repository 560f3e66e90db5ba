"""What a rank has of a weight, as entries of the whole: the same that its recipe gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tokenspeed.plans.counter_weights import counter_elements, counter_weight
from tokenspeed.plans.rank_parts import RankPart, is_cut, rank_part
from tokenspeed.plans.recipe import Addend, Cast, Concat, Part, Recipe, Source, Stack, Stretch, Transpose
from tokenspeed.plans.recipe_shapes import lookup_in
from tokenspeed.plans.schema import SourceTensor
from tokenspeed.runtime.recipe_evaluation import Stored, evaluate

ROWS = Source("rows")  # 6 x 4
MORE = Source("more")  # 3 x 4
SHAPES = {"rows": (6, 4), "more": (3, 4)}
WHOLE = {"rows": np.arange(24, dtype=np.float32).reshape(6, 4), "more": 100 + np.arange(12, dtype=np.float32).reshape(3, 4)}
SOURCES = {
    name: SourceTensor(name=name, encoding="F32", shape=shape, bytes=4 * shape[0] * shape[1]) for name, shape in SHAPES.items()
}


def halves(recipe: Recipe, dimension: int, size: int, axis: str = "tp", copies: int = 1) -> Part:
    return Part(recipe, axis, dimension, (Stretch(0, size, -(-size * copies // 2), copies),))


RECIPES: dict[str, tuple[Recipe, Recipe]] = {
    "rows": (halves(ROWS, 0, 6), ROWS),
    "filled up": (halves(MORE, 0, 3), MORE),
    "columns": (halves(Cast(ROWS, "f32"), 1, 4), ROWS),
    "copies": (halves(MORE, 0, 3, copies=2), MORE),
    "segments": (Concat((halves(ROWS, 0, 6), halves(MORE, 0, 3, copies=2)), 0), Concat((ROWS, MORE), 0)),
    "columns of a join": (Concat((halves(ROWS, 1, 4), halves(MORE, 1, 4)), 0), Concat((ROWS, MORE), 0)),
    "stack": (Stack((halves(ROWS, 1, 4), halves(ROWS, 1, 4)), 0), Stack((ROWS, ROWS), 0)),
    "two axes": (Part(halves(ROWS, 0, 6), "ep", 0, (Stretch(0, 3, 2),)), ROWS),
    "addend": (Addend(ROWS, "tp"), ROWS),
    "whole": (ROWS, ROWS),
    "whole, moved": (Transpose(ROWS, (1, 0)), Transpose(ROWS, (1, 0))),
}


@pytest.mark.parametrize("name", RECIPES)
def test_places_are_those_that_the_recipe_takes(name: str) -> None:
    cut, whole = RECIPES[name]
    stored = {key: Stored(SOURCES[key], memoryview(value.tobytes())) for key, value in WHOLE.items()}
    everything = np.array(evaluate(whole, stored, None, "w").data)
    for tp, ep in itertools.product(range(2), range(2)):
        rank = {"tp": tp, "ep": ep}
        part = rank_part(cut, lookup_in(SOURCES, None), rank)
        assert part.shape == everything.shape and is_cut(cut) == (not name.startswith("whole"))
        taken = everything[np.ix_(*(np.maximum(own, 0) for own in part.places))]
        for dimension, own in enumerate(part.places):
            taken[(slice(None),) * dimension + (own < 0,)] = 0
        np.testing.assert_array_equal(taken * part.present, evaluate(cut, stored, None, "w", rank).data)


def test_counter_values_of_a_part_are_the_wholes() -> None:
    part = rank_part(halves(halves(ROWS, 1, 4), 0, 6), lookup_in(SOURCES, None), {"tp": 1})
    np.testing.assert_array_equal(part.counter_rows("w.weight"), counter_weight("w.weight", (6, 4))[3:, 2:])
    np.testing.assert_array_equal(part.counter_rows("w.weight", 1, 2), counter_weight("w.weight", (6, 4))[4:5, 2:])
    padded = rank_part(halves(MORE, 0, 3), lookup_in(SOURCES, None), {"tp": 1})
    np.testing.assert_array_equal(padded.counter_rows("w")[1], np.zeros(4))


@pytest.mark.parametrize("shape", [(7,), (6, 9), (3, 5, 8)])
def test_any_elements_of_a_counter_weight(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(1)
    places = [np.sort(generator.choice(size, size - 2, replace=False)) for size in shape]
    expected = counter_weight("w.weight", shape)[np.ix_(*places)]
    np.testing.assert_array_equal(counter_elements("w.weight", shape, places), expected)


def test_elements_beyond_32_bits_of_index() -> None:
    rows, columns = np.arange(61350, 61400), np.arange(5, 900)  # elements 2^32 are among them
    expected = counter_weight("w", (70000, 70000), 61350, 61400)[:, 5:900]
    np.testing.assert_array_equal(counter_elements("w", (70000, 70000), [rows, columns]), expected)


def test_rows_of_one_entry() -> None:
    shape = (3, 6, 8)
    part = RankPart(shape, (np.array([0, 2]), np.array([1, 2, 5, -1]), np.arange(4, 8)))
    found = part.counter_rows_of_entry("experts", 1, 1, 4)
    np.testing.assert_array_equal(found, part.counter_rows("experts")[1, 1:4])
    np.testing.assert_array_equal(found[:2], counter_weight("experts", shape)[2, [2, 5], 4:])
    whole = RankPart(shape, tuple(map(np.arange, shape)))
    np.testing.assert_array_equal(whole.counter_rows_of_entry("experts", 2, 0, 6), counter_weight("experts", shape)[2])


def test_parts_that_differ_where_they_are_joined_are_refused() -> None:
    with pytest.raises(ValueError, match="differ where they are joined"):
        rank_part(Concat((halves(ROWS, 1, 4), MORE), 0), lookup_in(SOURCES, None), {"tp": 0})
    with pytest.raises(ValueError, match="transpose of a part"):
        rank_part(Transpose(halves(ROWS, 0, 6), (1, 0)), lookup_in(SOURCES, None), {})
